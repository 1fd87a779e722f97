"""Recording of what a shard produced, exactly once: vectors, errors, usage, counters."""
