"""The HTTP client of the command line: which server and key, retries, and typed responses."""
