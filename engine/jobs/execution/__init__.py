"""Execution of a claimed shard in a worker process."""
