"""Progress of a job, computed from its row: rate, time to the end, and what it waits for."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Row

from models.job import FINISHED, JobStatus

MIN_SAMPLE_AGE_S = 5.0
# A job that is not started after this time, although workers are alive, waits for its turn.
UNSTARTED_AFTER_S = 2.0
# Waits without a known end: the next attempt may fail like the last one.
WAITS_WITHOUT_END = frozenset({"provider", "database", "budget", "fairness", "ingest"})


def eta_s(row: Row[Any], inputs_per_s: float, reason: str | None) -> int | None:
    """Seconds until the job ends, including a wait for quota. None without a rate, or where the wait has no known end.

    `inputs_per_s` as of rate(), `reason` as of waiting_on().
    """
    if row.status in FINISHED:
        return 0
    if row.total is None or round(inputs_per_s, 1) <= 0 or reason in WAITS_WITHOUT_END:
        return None
    wait_s = 0.0 if row.next_attempt_at is None or reason is None else max(0.0, row.next_attempt_at - row.now)
    return max(1, round(wait_s + pending(row) / inputs_per_s))


def pending(row: Row[Any]) -> int:
    """Number of known inputs without an outcome."""
    known = row.ingested if row.total is None else row.total
    return max(0, int(known) - int(row.completed) - int(row.failed))


def waiting_on(row: Row[Any]) -> tuple[str | None, int | None]:
    """What the job waits for, and the second in which it may continue, where that is known and in the future."""
    if row.status == JobStatus.PAUSED:
        return ("budget" if row.waiting_on == "budget" else None), None
    if row.status != JobStatus.IN_PROGRESS:
        return None, None
    if row.waiting_on is not None:
        is_ahead = row.next_attempt_at is not None and row.next_attempt_at > row.now
        return str(row.waiting_on), math.ceil(row.next_attempt_at) if is_ahead else None
    if row.total is None and pending(row) == 0:
        return "ingest", None
    if row.workers_live and row.now - row.created_at > UNSTARTED_AFTER_S:  # only computed for jobs that are not started
        return "fairness", None
    return None, None


def outage(row: Row[Any]) -> dict[str, Any] | None:
    """The outage that the job waits for: provider, code, message, advice, since and next_attempt_at (unix seconds)."""
    if row.outage is None or row.status != JobStatus.IN_PROGRESS or row.waiting_on != "provider":
        return None
    names = ("provider", "code", "message", "advice")
    return {name: row.outage[name] for name in names} | {
        "since": int(row.outage["since"]),
        "next_attempt_at": math.ceil(max(row.next_attempt_at or row.now, row.now)),
    }


def rate(row: Row[Any]) -> tuple[float, float]:
    """Inputs and tokens per second: of the last 15 to 30 s while it runs, of its whole time at its end. 0: unknown."""
    done = row.completed + row.failed
    if row.started_at is None or row.status == JobStatus.PAUSED:
        return 0.0, 0.0
    since, done_then, tokens_then = row.started_at, 0, 0
    until = row.now
    if row.status in FINISHED:
        until = row.finished_at or row.now
    elif row.rate_sample_at is None:  # no results since it was started, resumed or retried
        return 0.0, 0.0
    elif row.prev_rate_sample_at is not None:
        since, done_then, tokens_then = row.prev_rate_sample_at, row.prev_rate_sample_done, row.prev_rate_sample_tokens
    elif row.rate_sample_at is not None and row.now - row.rate_sample_at > MIN_SAMPLE_AGE_S:
        since, done_then, tokens_then = row.rate_sample_at, row.rate_sample_done, row.rate_sample_tokens
    elif row.rate_sample_done:  # it was resumed just now: the rate before the pause says nothing
        return 0.0, 0.0
    seconds = max(until - since, 0.001)
    return (done - done_then) / seconds, (row.prompt_tokens - tokens_then) / seconds
