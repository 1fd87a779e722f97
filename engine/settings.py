"""What the environment says. Every name is `EMBEDMILL_` + the upper-case field name; `.env.example` lists them all."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from models.errors import ConfigError

PREFIX = "EMBEDMILL_"
# Read by the command line, not by the engine; listed here so that a typo check knows them.
CLIENT_NAMES = ("URL", "API_KEY")


def setting(default: Any, doc: str) -> Any:
    """A field with its one-line explanation, which `.env.example` must repeat (a test compares)."""
    if callable(default):
        return field(default_factory=default, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


SAME_SCHEMES = {"valkey": "redis", "valkeys": "rediss", "pyamqp": "amqp", "py-amqp": "amqp"}


@dataclass(frozen=True, slots=True)
class Settings:
    data_dir: Path = setting(lambda: Path(".embedmill"), "Folder for the database, the embedded Valkey and keys")
    database_url: str = setting(
        "", "SQLAlchemy URL; empty: SQLite in the data directory; postgresql://… for many machines"
    )
    redis_url: str = setting("", "Redis or Valkey; empty: the embedded one that `embedmill up` starts")
    broker_url: str = setting("", "Celery broker; empty: REDIS_URL; amqp://… for RabbitMQ")
    config: str = setting("", "Path of embedmill.toml; empty: the built-in local model only")
    key_pepper: str = setting("", "Secret that keys are hashed under; empty: made once and kept in the data directory")
    log_format: str = setting("json", "json or text")
    log_level: str = setting("INFO", "DEBUG, INFO, WARNING or ERROR")

    max_body_bytes: int = setting(32 * 1024 * 1024, "Largest JSON body, in bytes (a streamed corpus has no such limit)")
    max_line_bytes: int = setting(
        4 * 1024 * 1024, "Largest line of a streamed corpus, in bytes; a longer one is that input's error"
    )
    max_corpus_bytes: int = setting(64 * 1024**3, "Largest streamed corpus, in bytes after decompression")
    max_inputs_per_request: int = setting(2048, "Inputs in one sync request")
    sync_timeout_s: float = setting(60.0, "Deadline of a sync request, in seconds")
    max_reply_bytes: int = setting(256 * 1024 * 1024, "Largest upstream answer read, in bytes")

    canary_every_s: float = setting(600.0, "Seconds between two checks of a route's canary, where its account has one")
    canary_similarity: float = setting(
        0.999, "Cosine with its first answer below which a canary's route is quarantined"
    )

    shard_inputs: int = setting(4096, "Inputs in one shard at the most")
    shard_bytes: int = setting(4 * 1024 * 1024, "Bytes of text in one shard at the most")
    batch_inputs: int = setting(128, "Inputs in one upstream call at the most (a provider's lower limit wins)")
    shard_concurrency: int = setting(16, "Upstream calls that one shard keeps in flight")
    shard_budget_s: float = setting(45.0, "Seconds a worker stays on one shard before it releases the rest")
    shard_attempts: int = setting(8, "Claims of one shard before what is left of it fails")
    lease_s: float = setting(60.0, "Seconds a worker's claim on a shard lasts without a heartbeat")
    heartbeat_s: float = setting(15.0, "Seconds between heartbeats; four must fit into a lease")
    ring_again_s: float = setting(30.0, "Seconds after which a shard that nobody claimed is rung again")
    sweep_s: float = setting(2.0, "Seconds between two sweeps")
    spool_bytes: int = setting(4 * 1024**3, "Bytes that paid results may take on disk while the database is away")
    claim_unrung_s: float = setting(
        5.0, "Seconds that a shard waits for its message to arrive before an idle worker takes it unasked"
    )
    watchdog_s: float = setting(
        30.0, "Seconds without a message, while shards wait and the broker answers, before a worker restarts itself"
    )
    worker_seen_s: float = setting(45.0, "Seconds after its last heartbeat that a worker counts as alive")
    worker_metrics_port: int = setting(0, "Port on which a worker serves its own /metrics; 0: none")
    job_retention_days: float = setting(30.0, "Days until a job and its results are removed")
    idempotency_hours: float = setting(24.0, "Hours that an Idempotency-Key is remembered")
    failpoints: str = setting("", "For tests: where to kill, freeze, fail or stall processes (engine/failpoints.py)")

    @property
    def sqlalchemy_url(self) -> str:
        """The database URL with its async driver named."""
        url = self.database_url or f"sqlite:///{(self.data_dir / 'embedmill.db').absolute()}"
        for plain, driver in (("postgresql://", "postgresql+asyncpg://"), ("postgres://", "postgresql+asyncpg://")):
            if url.startswith(plain):
                return driver + url[len(plain) :]
        return url.replace("sqlite://", "sqlite+aiosqlite://", 1) if url.startswith("sqlite://") else url

    @property
    def broker(self) -> str:
        """The broker's URL; empty when none is configured and no embedded one has been started."""
        return _by_usual_scheme(self.broker_url) or self.redis

    @property
    def redis(self) -> str:
        """Redis's URL; empty when none is configured and no embedded one has been started."""
        if self.redis_url:
            return _by_usual_scheme(self.redis_url)
        kept = self.data_dir / "redis_url"
        return kept.read_text().strip() if kept.is_file() else ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the settings. Raises ConfigError for an unknown name or a value that is not of its type."""
        environ = os.environ if environ is None else environ
        known = {f.name.upper(): f for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            short = name.removeprefix(PREFIX)
            if short.startswith("TEST_") or short in CLIENT_NAMES:
                continue
            if short not in known:
                near = difflib.get_close_matches(short, [*known, *CLIENT_NAMES], n=1)
                hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
                raise ConfigError(f"unknown setting {name}{hint}", param=name)
            default = getattr(cls(), known[short].name)
            try:
                values[known[short].name] = type(default)(text) if not isinstance(default, Path) else Path(text)
            except ValueError as error:
                raise ConfigError(
                    f"{name}={text!r} is not {'a number' if isinstance(default, (int, float)) else 'valid'}", param=name
                ) from error
        values.update({name: value for name, value in overrides.items() if value is not None})
        settings = cls(**values)
        for name, value in ((each.name, getattr(settings, each.name)) for each in fields(cls)):
            # 0 is good only where it is the default and means "none"; NaN is good nowhere.
            if isinstance(value, int | float) and not (0 < value < math.inf or value == getattr(cls(), name)):
                raise ConfigError(f"{PREFIX}{name.upper()} must be more than 0", param=name)
        if settings.heartbeat_s * 4 > settings.lease_s:
            raise ConfigError("four heartbeats must fit into a lease: HEARTBEAT_S x 4 <= LEASE_S", param="HEARTBEAT_S")
        return settings


def _by_usual_scheme(url: str) -> str:
    """The URL with the scheme that all libraries know, where it has another name for the same protocol."""
    scheme, separator, rest = url.partition("://")
    return SAME_SCHEMES.get(scheme, scheme) + separator + rest
