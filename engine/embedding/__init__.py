"""Runs batches: attempts over routes, retries, the search for poison inputs, detection of hanging calls."""
