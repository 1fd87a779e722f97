"""One worker at a time holds a shard: claims, leases and fences."""
