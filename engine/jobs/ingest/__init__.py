"""A corpus becomes a job and its shards, or an estimate of them."""
