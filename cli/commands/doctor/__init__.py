"""`embedmill doctor`: one module for each group of checks, and the report."""
