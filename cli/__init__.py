"""Command line: `embedmill`, also `python -m cli`."""
