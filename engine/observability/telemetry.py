"""What operators see: Prometheus metrics and structured logs. Neither ever holds an input, a vector or a key.

Counters of all processes of a machine are added up where they share a folder (PROMETHEUS_MULTIPROC_DIR, which
`embedmill up` and `embedmill worker` set): the API then tells what its workers did too.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import orjson
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    multiprocess,
)

from engine.config_checks import redacted

REGISTRY = CollectorRegistry()
VERSION = version("embedmill")

REQUESTS = Counter("embedmill_requests_total", "Answered HTTP requests", ["route", "status"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "embedmill_request_seconds",
    "Time to answer an HTTP request",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
CONNECTIONS = Gauge(
    "embedmill_connections", "Connections open to the API", multiprocess_mode="livesum", registry=REGISTRY
)
CONNECTIONS_CLOSED = Counter(
    "embedmill_connections_closed_total",
    "Connections that the API closed or refused, by reason",
    ["reason"],
    registry=REGISTRY,
)
BUDGET_REFUSALS = Counter(
    "embedmill_budget_refusals_total",
    "Requests refused because a budget of the API was used up: calls, polls or streams, of a key or of the process",
    ["budget", "scope"],
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
WASTED_TOKENS = Counter(
    "embedmill_wasted_tokens_total",
    "Tokens of calls that the provider has billed and whose replies nobody got",
    ["provider", "model", "code"],
    registry=REGISTRY,
)
LIMITER_WAIT_SECONDS = Histogram(
    "embedmill_limiter_wait_seconds",
    "Time that a call to an account with a quota waited for its start",
    ["provider", "model", "lane"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    registry=REGISTRY,
)
LIMITER_REFUSALS = Counter(
    "embedmill_limiter_refusals_total",
    "Calls turned away because the quota would not allow them before their deadline",
    ["provider", "model", "lane"],
    registry=REGISTRY,
)
RATE_LIMIT_COOLDOWNS = Counter(
    "embedmill_limiter_rate_limited_total",
    "Answers 429: each keeps all processes from the account and model until the provider's time is up",
    ["provider", "model"],
    registry=REGISTRY,
)
CONCURRENCY_LIMIT = Gauge(
    "embedmill_concurrency_limit",
    "Calls that may be under way now: of all processes for an account with a quota, else of this one",
    ["provider", "model"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
QUOTA_SHARE = Gauge(
    "embedmill_quota_share",
    "Share of the stated quota that calls keep to, since answers 429 have shown that it is less",
    ["provider", "model", "quota"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
REDIS_FAILURES = Counter(
    "embedmill_limiter_redis_failures_total", "Questions about a quota that Redis did not answer", registry=REGISTRY
)
LOCAL_FALLBACKS = Counter(
    "embedmill_limiter_local_fallback_total",
    "Calls paced by this process's share of the quota, because Redis was away",
    registry=REGISTRY,
)
TOKENS = Counter("embedmill_tokens_total", "Tokens embedded", ["provider", "model", "lane"], registry=REGISTRY)
INPUTS = Counter("embedmill_inputs_total", "Inputs settled", ["lane", "outcome"], registry=REGISTRY)
JOBS = Gauge("embedmill_jobs", "Jobs by status", ["status"], multiprocess_mode="mostrecent", registry=REGISTRY)
SHARDS = Gauge(
    "embedmill_shards",
    "Unfinished shards by state (queued: the depth of the queue)",
    ["state"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
OLDEST_QUEUED_SECONDS = Gauge(
    "embedmill_oldest_queued_seconds",
    "How long the shard that has waited longest for a worker has been due; 0: none waits",
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
    "How late the event loop of the API ran a timer at the worst, of the last minute",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
LOOP_DELAY_SECONDS = Histogram(
    "embedmill_event_loop_delay_seconds",
    "How late the event loop of the API ran each timer of those that are due every 50 ms",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    registry=REGISTRY,
)
WORK_THREAD_SECONDS = Histogram(
    "embedmill_work_thread_seconds",
    "Time of one step of parsing, counting or hashing beside the event loop",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
    registry=REGISTRY,
)
BODY_BYTES = Gauge(
    "embedmill_body_bytes",
    "Bytes of request bodies and uploads held now by this process",
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
BODY_REFUSALS = Counter(
    "embedmill_body_refusals_total",
    "Bodies refused for lack of room, by code, or for coming too slowly",
    ["code"],
    registry=REGISTRY,
)
SPACE_MISMATCH = Gauge(
    "embedmill_route_space_mismatch",
    "1: the route's vectors are not those of its model's first route, and nothing is sent to it",
    ["provider", "model", "space"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
QUARANTINED = Gauge(
    "embedmill_route_quarantined",
    "1: the route failed its drift check, and nothing is sent to it",
    ["provider", "model", "space"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
BUILD_INFO = Gauge(
    "embedmill_build_info",
    "1, labelled with the version of embedmill and of Python",
    ["version", "python"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
BUILD_INFO.labels(VERSION, platform.python_version()).set(1)
SWEEP_SECONDS = Histogram(
    "embedmill_sweep_seconds",
    "Time of one round of the scheduler's sweep",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60),
    registry=REGISTRY,
)
SCHEDULER_ROUNDS = Counter(
    "embedmill_scheduler_rounds_total",
    "Rounds of the scheduler, by duty and outcome (ok, database_away, failed)",
    ["duty", "outcome"],
    registry=REGISTRY,
)
JOB_SECONDS = Histogram(
    "embedmill_job_seconds",
    "Time from a job's creation to its end, by final status",
    ["status"],
    buckets=(1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600),
    registry=REGISTRY,
)
COST_USD = Counter(
    "embedmill_cost_usd_total",
    "What providers charged at the configured prices, by project and kind (delivered, wasted, ambiguous)",
    ["project", "provider", "model", "kind"],
    registry=REGISTRY,
)
NOTIFY_FAILURES = Counter(
    "embedmill_notifications_failed_total", "Messages that the broker did not take", registry=REGISTRY
)
ROUTES_DOWN = Gauge(
    "embedmill_route_down",
    "1: no call to the route can succeed, as far as is known; jobs wait for it",
    ["provider", "model"],
    multiprocess_mode="mostrecent",
    registry=REGISTRY,
)
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
MESSAGES_DROPPED = Counter(
    "embedmill_messages_dropped_total",
    "Messages in the queue that embedmill did not send, acknowledged and dropped",
    registry=REGISTRY,
)
USAGE_DROPPED = Counter(
    "embedmill_usage_rows_dropped_total",
    "Ledger rows of sync calls that are not in the database and never will be: see the log",
    registry=REGISTRY,
)


def count_cost(rows: Iterable[Mapping[str, Any]]) -> None:
    """Add ledger rows that were just written to the metric of cost."""
    for row in rows:
        labels = row["project"], row["provider"], row["upstream_model"], row["kind"]
        COST_USD.labels(*labels).inc(float(row["cost_usd"]))


def render_metrics() -> bytes:
    """Every metric in Prometheus's text format: of all processes that share the folder, or of this one."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY) + generate_latest(_PROCESS)
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return generate_latest(together) + generate_latest(_PROCESS)


# CPU, memory and descriptors of the process that answers: they cannot be added up over processes.
_PROCESS = CollectorRegistry()
ProcessCollector(registry=_PROCESS)


# Fields that a log record may carry beside its message; anything else given as `extra` is dropped.
FIELDS = (
    *("request_id", "client_request_id", "method", "route", "path", "param", "key_id", "project", "client"),
    *("status", "duration_ms", "job_id", "shard_id", "event_id", "endpoint_id", "attempt", "inputs", "failed"),
    *("provider", "model", "code", "advice", "worker", "pid_of_child", "count", "freed"),
    *("tokens_per_minute", "requests_per_minute"),
)


class JsonFormatter(logging.Formatter):
    """A line of JSON. A library's text, in a message or a traceback, may quote a key or a URL: shown redacted."""

    def __init__(self, service: str = "embedmill") -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": redacted(record.getMessage()),
            "service": self._service,
            "version": VERSION,
            "pid": record.process,
        }
        line.update({name: value for name in FIELDS if (value := getattr(record, name, None)) is not None})
        if record.exc_info:
            line["exception"] = redacted(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """Log lines for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name in FIELDS if (value := getattr(record, name, None)) is not None)
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        text = f"{clock} {record.levelname:<7} {record.name}: {redacted(record.getMessage())}" + (
            f"  {extra}" if extra else ""
        )
        return text + ("\n" + redacted(self.formatException(record.exc_info)) if record.exc_info else "")


class _Repetitions(logging.Filter):
    """Bounds the rate of a library's message: a broker outage would be logged twice a second otherwise."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._logged_at: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now, text = time.monotonic(), record.getMessage()[:200]
        if record.levelno >= logging.CRITICAL or now - self._logged_at.get(text, -self.EVERY_S) >= self.EVERY_S:
            if len(self._logged_at) > 1000:
                self._logged_at.clear()
            self._logged_at[text] = now
            return True
        return False


class _OneLine(logging.Filter):
    """A library's line about a fault that is made good: a warning without its traceback, and what follows from it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info = record.exc_text = record.stack_info = None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args = (
            f"{record.getMessage().splitlines()[0][:200]}; the database knows what is left to do",
            (),
        )
        return True


def configure_logging(level: str, log_format: str, *, service: str = "embedmill") -> None:
    """Send every logger of this process, and Python's warnings, to stderr: one line a record.

    `service` (api, worker, scheduler, up) stands in every JSON line, beside the version and the process id.
    """
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter(service))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore", "aiosqlite", "asyncio", "kombu", "amqp", "celery.redirected", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)  # httpx logs whole URLs at INFO
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "celery", "celery.worker", "celery.app.trace"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.WARNING)
    for name in ("celery.worker.consumer.consumer", "py.warnings"):
        logging.getLogger(name).filters = [_Repetitions()]
    for name in ("celery.worker.request", "multiprocessing"):  # of a child that died, or a broker that went away
        logging.getLogger(name).filters = [_OneLine()]
