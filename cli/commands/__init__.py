"""The commands of `embedmill`, one module for each group. They import what they need when they run."""
