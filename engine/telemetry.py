"""What operators see: Prometheus metrics and structured logs. Neither ever holds an input, a vector or a key.

Counters of all processes of a machine are added up where they share a folder (PROMETHEUS_MULTIPROC_DIR, which
`embedmill up` and `embedmill worker` set): the API then tells what its workers did too.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

REGISTRY = CollectorRegistry()

REQUESTS = Counter("embedmill_requests_total", "Answered HTTP requests", ["route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "embedmill_request_seconds",
    "Time to answer an HTTP request",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
UPSTREAM_CALLS = Counter(
    "embedmill_upstream_calls_total", "Calls to providers", ["provider", "model", "outcome"], registry=REGISTRY
)
UPSTREAM_SECONDS = Histogram(
    "embedmill_upstream_seconds",
    "Time of a call to a provider",
    ["provider", "model"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
AMBIGUOUS_CALLS = Counter(
    "embedmill_ambiguous_calls_total",
    "Calls that were sent and never answered, or cut off: the provider may have billed them",
    ["provider", "model"],
    registry=REGISTRY,
)
PACING_WAIT_SECONDS = Histogram(
    "embedmill_pacing_wait_seconds",
    "Time that a call to an account with a quota waited for its start",
    ["provider", "model", "lane"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
PACING_REFUSALS = Counter(
    "embedmill_pacing_refusals_total",
    "Calls turned away because the quota would not allow them before their deadline",
    ["provider", "model", "lane"],
    registry=REGISTRY,
)
GATES_CLOSED = Counter(
    "embedmill_pacing_rate_limited_total",
    "Answers 429: each keeps all processes from the account and model until the provider's time is up",
    ["provider", "model"],
    registry=REGISTRY,
)
PLACES = Gauge(
    "embedmill_concurrency_limit",
    "Calls that may be under way now: of all processes for an account with a quota, else of this one",
    ["provider", "model"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
PACING_FALLBACKS = Counter(
    "embedmill_pacing_redis_failures_total", "Questions about a quota that Redis did not answer", registry=REGISTRY
)
PACED_ALONE = Counter(
    "embedmill_pacing_fallback_total",
    "Calls paced by this process's share of the quota, because Redis was away",
    registry=REGISTRY,
)
TOKENS = Counter("embedmill_tokens_total", "Tokens embedded", ["provider", "model", "lane"], registry=REGISTRY)
INPUTS = Counter("embedmill_inputs_total", "Inputs settled", ["lane", "outcome"], registry=REGISTRY)
JOBS = Gauge("embedmill_jobs", "Jobs by status", ["status"], multiprocess_mode="mostrecent", registry=REGISTRY)
SHARDS = Gauge(
    "embedmill_shards",
    "Unfinished shards by state (queued and rung: the queue's depth)",
    ["state"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
OLDEST_LEASE_SECONDS = Gauge(
    "embedmill_oldest_lease_seconds",
    "How long ago the oldest lease ran out that nobody has renewed or swept; 0: none",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
EXPIRED_LEASES = Gauge(
    "embedmill_expired_leases",
    "Shards whose lease ran out and were not swept yet",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
WORKERS = Gauge("embedmill_workers", "Worker processes seen lately", multiprocess_mode="mostrecent", registry=REGISTRY)
LOOP_LAG_SECONDS = Gauge(
    "embedmill_event_loop_lag_seconds",
    "How late the event loop ran its last timer",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
QUARANTINED = Gauge(
    "embedmill_route_quarantined",
    "1: another model answers the route's canary than before, and nothing is sent to it",
    ["provider", "model", "space"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
RINGS_FAILED = Counter("embedmill_rings_failed_total", "Messages that the broker did not take", registry=REGISTRY)
SPOOLED = Counter(
    "embedmill_spool_files_total",
    "Files of paid results: written, refused by the disk, replayed, dropped as too late, bad",
    ["outcome"],
    registry=REGISTRY,
)
USAGE_WAITING = Gauge(
    "embedmill_usage_rows_waiting",
    "Ledger rows of sync calls not yet in the database",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)


def exposition() -> bytes:
    """Every metric in Prometheus's text format: of all processes that share the folder, or of this one."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together)


# Fields that a log record may carry beside its message; anything else given as `extra` is dropped.
FIELDS = (
    "request_id",
    "client_request_id",
    "method",
    "route",
    "status",
    "duration_ms",
    "job_id",
    "shard_id",
    "attempt",
    "inputs",
    "failed",
    "provider",
    "model",
    "code",
    "worker",
    "pid_of_child",
    "count",
    "freed",
)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name in FIELDS if (value := getattr(record, name, None)) is not None})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name in FIELDS if (value := getattr(record, name, None)) is not None)
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        text = f"{clock} {record.levelname:<7} {record.name}: {record.getMessage()}" + (f"  {extra}" if extra else "")
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure_logging(level: str, log_format: str) -> None:
    """Send every logger of this process to stderr, one line a record."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore", "aiosqlite", "asyncio", "kombu", "amqp", "celery.redirected", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # httpx logs whole URLs at INFO
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "celery.worker", "celery.app.trace"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
