"""Rate limiting: when a call may start. Quotas are kept by starting calls later, not by being refused and retrying.

Each process has one `RouteLimiter` for each account and upstream model. Where the account has a quota, all processes
share one pair of token buckets in Redis (`redis_store`, `lua`); without Redis each process keeps its part of the quota
in buckets of its own (`bucket`), by the same rules. The arithmetic is in `quota`: no minute holds more than the quota.
Where 429s show that the real quota is lower than the stated one, all calls keep to the lower one (`learned_quota`).
"""
