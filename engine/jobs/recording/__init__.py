"""What a shard brought is written down, once: results, errors, usage, counters."""
