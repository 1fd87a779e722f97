"""Which shard is next: fair share over projects and jobs, and notifications about it."""
