"""Ingest: an uploaded corpus becomes a job and its shards, or a dry run of them."""
