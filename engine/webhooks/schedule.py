"""When a delivery that failed is tried again: the schedule of Standard Webhooks 1.0, with jitter.

Source: spec/standard-webhooks.md, "Deliverability and reliability" (read in August 2026).
"""

from __future__ import annotations

from random import uniform

# Seconds before each attempt, from the one before it: the last is made three days after the first.
DELAYS_S = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
JITTER = 0.1  # so much later at the most, as a share of the delay


def next_delay_s(attempts: int, retry_after_s: float | None = None) -> float | None:
    """Seconds until the next attempt after so many; None: it was the last. A receiver may ask for a later one."""
    if attempts >= len(DELAYS_S):
        return None
    delay_s = DELAYS_S[attempts] * uniform(1.0, 1.0 + JITTER)
    return max(delay_s, retry_after_s or 0.0)
