"""The terminal edge: `embedmill`, also `python -m cli`."""
