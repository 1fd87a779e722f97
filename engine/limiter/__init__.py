"""Pacing: when a call may start. Quotas are kept by starting calls later, not by being refused and asking again.

There is one line for each account and upstream model (`line`) in every process. Where the account has a quota, all
processes share one book of it in Redis (`shared`, `script`); without Redis each keeps its share of the quota in a book
of its own (`book`), by the same rules. What these promise is arithmetic (`quota`): no minute holds more than the quota.
Where 429s show that the real quota is lower, all keep to that (`learned`).
"""
