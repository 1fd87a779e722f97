"""embed(): the one function that turns inputs into outcomes, for sync requests and for shards of jobs."""
