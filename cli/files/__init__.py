"""Files that are embedded, and files that vectors are saved to."""
