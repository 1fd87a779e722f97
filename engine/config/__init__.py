"""Configuration: environment, embedmill.toml, known models and secrets, checked when they are read."""
