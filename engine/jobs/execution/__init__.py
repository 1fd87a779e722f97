"""A claimed shard runs."""
