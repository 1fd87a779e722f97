"""OpenAI batches: a file of requests is validated, runs as one job, and its output is written to files."""
