"""Leases of shards: claim, heartbeat, release, and shards that wait for others."""
