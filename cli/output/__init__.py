"""What the terminal shows: streams, tables, progress."""
