"""The order of service: fair share over projects and jobs, and the announcement of shards to workers."""
