"""What the environment says. Every name is `EMBEDMILL_` + the upper-case field name; `.env.example` lists them all."""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.connections import urls
from engine.process.data_folder import is_up_running
from models.errors import ConfigError

log = logging.getLogger("embedmill.settings")

PREFIX = "EMBEDMILL_"
# Order that must hold: upstream deadline < soft < hard < visibility timeout, when Redis delivers a message again.
VISIBILITY_TIMEOUT_S = 300
CALL_GRACE_S = 45
HARD_LIMIT_MARGIN_S = 30
BEAT_S = 10.0  # between two heartbeats of a worker process
WORKER_SEEN_S = 4.5 * BEAT_S  # after its last heartbeat a worker counts as alive for so long: four may be late
BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
# Read by the command line, not by the engine; listed here so that a typo check knows them.
CLIENT_NAMES = ("URL", "API_KEY")
# Settings of earlier versions, whose values follow from LEASE_S now.
DERIVED = frozenset(
    {"HEARTBEAT_S", "SWEEP_S", "WATCHDOG_S", "WORKER_SEEN_S", "REANNOUNCE_AFTER_S", "CLAIM_UNANNOUNCED_AFTER_S"}
)


def setting(default: Any, doc: str, *, may_be_0: bool = False) -> Any:
    """A field with its one-line explanation, which `.env.example` must repeat (a test compares)."""
    metadata = {"doc": doc, "may_be_0": may_be_0}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """The `EMBEDMILL_*` environment variables; each field's text is its documentation."""

    data_dir: Path = setting(lambda: Path(".embedmill"), "Folder for the database, the embedded Valkey and keys")
    database_url: str = setting(
        "", "SQLAlchemy URL; empty: SQLite in the data directory; postgresql://… for many machines"
    )
    objects_url: str = setting(
        "",
        "Where the bytes of files are kept; empty: in the data directory; file:///PATH; s3://BUCKET/PREFIX",
    )
    redis_url: str = setting("", "Redis or Valkey; empty: the embedded one that `embedmill up` starts")
    broker_url: str = setting("", "Celery broker; empty: REDIS_URL; amqp://… for RabbitMQ")
    namespace: str = setting(
        "embedmill", "Name of this installation in Redis and the broker; two that share one need different names"
    )
    config: str = setting("", "Path of embedmill.toml; empty: the built-in local model only")
    key_pepper: str = setting("", "Secret that keys are hashed under; empty: made once and kept in the data directory")
    log_format: str = setting("json", "json or text")
    log_level: str = setting("INFO", "DEBUG, INFO, WARNING or ERROR")

    max_body_bytes: int = setting(32 * 1024 * 1024, "Largest JSON body, in bytes (a streamed corpus has no such limit)")
    max_line_bytes: int = setting(
        4 * 1024 * 1024, "Largest line of a streamed corpus, in bytes; a longer one is that input's error"
    )
    max_job_bytes: int = setting(64 * 1024**3, "Largest streamed corpus, in bytes after decompression")
    max_inputs_per_job: int = setting(100_000_000, "Inputs of one job, those that are refused among them")
    max_errors_per_job: int = setting(
        20_000_000, "Inputs of a corpus that may be refused as it arrives before the whole corpus is"
    )
    max_compression_ratio: float = setting(
        200.0, "How many times its size a gzip body may grow when it is unpacked, once it is larger than 16 MiB"
    )
    max_held_bytes: int = setting(96 * 1024 * 1024, "Bytes of request bodies that one API process holds at a time")
    max_held_bytes_per_project: int = setting(64 * 1024 * 1024, "Of those, bytes that one project's requests hold")
    body_timeout_s: float = setting(120.0, "Seconds that a JSON body may take to arrive")
    upload_min_bytes_per_s: float = setting(
        64.0, "Bytes a second that a streamed corpus must bring while the server waits for it"
    )
    upload_window_s: float = setting(60.0, "Seconds of waiting over which that rate is taken")
    upload_timeout_s: float = setting(86_400.0, "Seconds that a streamed corpus may take to arrive")
    upload_resume_s: float = setting(
        3600.0, "Seconds that an upload which broke off can be taken up again under its Idempotency-Key"
    )
    max_file_bytes: int = setting(8 * 1024**3, "Largest file, uploaded at once or in parts, in bytes")
    max_inputs_per_request: int = setting(2048, "Inputs in one sync request")
    sync_timeout_s: float = setting(60.0, "Deadline of a sync request, in seconds")
    sync_gate_wait_s: float = setting(
        5.0, "Seconds that a sync call waits for a provider that has said 429 or is down, where no other route is left"
    )
    sync_extra_calls: int = setting(
        64, "Upstream calls that one sync request may make beyond one for each of its batches: retries and searches"
    )
    max_reply_bytes: int = setting(256 * 1024 * 1024, "Largest upstream answer read, in bytes")
    upstream_proxy: str = setting(
        "", "HTTP proxy of all upstream calls, http://USER:PASSWORD@HOST:PORT; an account's own proxy wins; empty: none"
    )

    head_timeout_s: float = setting(10.0, "Seconds in which a request's head must have arrived whole")
    stall_timeout_s: float = setting(
        30.0, "Seconds in which a body sent to us, or an answer to a caller, must move by 512 bytes"
    )
    keep_alive_s: float = setting(75.0, "Seconds that a connection without a request stays open")
    max_connections: int = setting(4096, "Connections to one API process; fewer where its limit on open files is lower")
    max_connections_per_address: int = setting(
        0, "Of them, those of one client address (IPv6: one /64); 0: half of MAX_CONNECTIONS"
    )
    trusted_proxies: str = setting(
        "127.0.0.0/8,::1",
        "Addresses and networks of reverse proxies, without a limit of their own; their X-Forwarded-* headers count",
    )
    root_path: str = setting("", "What a reverse proxy leaves in front of our paths, as in /embed; empty: nothing")
    cors_origins: str = setting(
        "", "Origins of web pages that may call the API with a key, as in https://a.example,https://b.example, or *"
    )
    unknown_parameters: str = setting(
        "reject", "Fields of a sync call that nothing knows: reject (400), or warn (ignored, named in the warnings)"
    )
    max_calls: int = setting(2048, "Requests under way in one API process")
    max_calls_per_key: int = setting(512, "Of them, those of one key")
    max_polls: int = setting(2000, "Long polls (`?wait=`) held open by one API process")
    max_polls_per_key: int = setting(50, "Of them, those of one key")
    max_streams: int = setting(64, "Streams of results under way in one API process")
    max_streams_per_key: int = setting(16, "Of them, those of one key")
    drain_s: float = setting(
        5.0,
        "Seconds between SIGTERM, when /readyz turns 503, and the end of the API's listener; 0: none",
        may_be_0=True,
    )
    ops_port: int = setting(
        0, "Port for /healthz, /readyz and /metrics in place of the API's, and of a worker or scheduler; 0: none"
    )
    ops_host: str = setting("127.0.0.1", "Address on which a worker or scheduler serves them")

    drift_check_every_s: float = setting(
        600.0,
        "Seconds between two drift checks of a route with a drift_probe, and two comparisons of a model's routes",
    )
    drift_min_similarity: float = setting(
        0.999, "Cosine with the reference vector below which a drift check quarantines the route"
    )

    shard_inputs: int = setting(4096, "Inputs in one shard at the most")
    shard_bytes: int = setting(4 * 1024 * 1024, "Bytes of text in one shard at the most")
    batch_inputs: int = setting(128, "Inputs in one upstream call at the most (a provider's lower limit wins)")
    shard_concurrency: int = setting(16, "Upstream calls that one shard keeps in flight")
    shard_budget_s: float = setting(45.0, "Seconds a worker stays on one shard before it releases the rest")
    shard_attempts: int = setting(8, "Claims of one shard before what is left of it fails")
    upstream_outage_hours: float = setting(
        24.0, "Hours that a job waits for a provider that is down, without any progress, before its inputs fail"
    )
    lease_s: float = setting(
        60.0,
        "Seconds a worker's claim on a shard lasts without a heartbeat; the times of heartbeats, sweeps and idle "
        "workers follow from it",
    )
    spool_max_bytes: int = setting(4 * 1024**3, "Bytes that paid results may take on disk while the database is away")
    job_retention_days: float = setting(30.0, "Days after its end that a job and its results are removed")
    job_deadline_days: float = setting(
        30.0, "Days after it was submitted, last resumed or retried that a job which has not ended expires"
    )
    ambiguous_retention_days: float = setting(
        400.0, "Days that calls which were sent and never answered stay on record"
    )
    webhook_allowed_networks: str = setting(
        "", "Networks, with commas between them, that webhooks may reach although they are not public, http:// too"
    )
    webhook_timeout_s: float = setting(15.0, "Seconds that the receiver of a webhook has for its answer")
    webhook_retention_days: float = setting(
        30.0, "Days that events of webhooks and their deliveries stay on record, replayable"
    )
    max_webhook_endpoints: int = setting(100, "Webhook endpoints of one project")
    idempotency_hours: float = setting(24.0, "Hours that an Idempotency-Key is remembered")
    failpoints: str = setting(
        "", "For tests: where to kill, freeze, fail or stall processes (engine/observability/failpoints.py)"
    )

    @property
    def sqlalchemy_url(self) -> str:
        """The database URL with its async driver named."""
        url = self.database_url or f"sqlite:///{(self.data_dir / 'embedmill.db').absolute()}"
        scheme, separator, rest = url.partition("://")
        if scheme.partition("+")[0] in urls.POSTGRES_SCHEMES:
            return f"postgresql+asyncpg{separator}{rest}"
        return url.replace("sqlite://", "sqlite+aiosqlite://", 1) if url.startswith("sqlite://") else url

    @property
    def origins(self) -> list[str]:
        """The origins of CORS_ORIGINS."""
        return [origin.strip() for origin in self.cors_origins.split(",") if origin.strip()]

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
        # One that was killed leaves the URL of a Valkey that died with it.
        return kept.read_text().strip() if kept.is_file() and is_up_running(self.data_dir) else ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the settings. Raises ConfigError for an unknown name or a value that is not of its type."""
        environ = os.environ if environ is None else environ
        known = {f.name.upper(): f for f in fields(cls)}
        values: dict[str, Any] = {}
        links: list[str] = []
        for name, text in environ.items():
            if not name.startswith(PREFIX):
                continue
            short = name.removeprefix(PREFIX)
            if short.startswith("TEST_") or short in CLIENT_NAMES:
                continue
            if short in DERIVED:
                raise ConfigError(
                    f"{name} is no setting any more: it follows from {PREFIX}LEASE_S; remove it", param=name
                )
            if short not in known:
                if _is_service_link(short, text):
                    links.append(name)
                    continue
                near = difflib.get_close_matches(short, [*known, *CLIENT_NAMES], n=1)
                hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
                raise ConfigError(f"unknown setting {name}{hint}", param=name)
            default = getattr(cls(), known[short].name)
            if not text.strip() and isinstance(default, int | float):
                continue  # empty means not set, as it does for texts
            values[known[short].name] = parsed(default, text, name)
        if links:
            # Kubernetes sets them in each pod beside a Service that is called embedmill.
            log.warning("ignored: %s; `enableServiceLinks: false` in the pod's spec leaves them out", ", ".join(links))
        values.update({name: value for name, value in overrides.items() if value is not None})
        settings = cls(**values)
        for each in fields(cls):
            value = getattr(settings, each.name)
            # 0 is good only where it means "none", as it does where it is the default; NaN is good nowhere.
            if isinstance(value, int | float) and not (
                0 < value < math.inf or value == getattr(cls(), each.name) or (value == 0 and each.metadata["may_be_0"])
            ):
                raise ConfigError(f"{PREFIX}{each.name.upper()} must be more than 0", param=each.name)
        settings.validate()
        return settings

    @property
    def soft_limit_s(self) -> int:
        """Seconds after which a worker's child is told to give its shard back: every call has ended by then."""
        return math.ceil(self.shard_budget_s) + CALL_GRACE_S

    @property
    def hard_limit_s(self) -> int:
        """Seconds after which a worker's child that does not listen is killed."""
        return self.soft_limit_s + HARD_LIMIT_MARGIN_S

    @property
    def heartbeat_s(self) -> float:
        """Seconds between two renewals of a lease: four fit into it."""
        return self.lease_s / 4

    @property
    def sweep_s(self) -> float:
        """Seconds between two sweeps, by which a crash is found: 2 with the default lease."""
        return min(2.0, self.lease_s / 8)

    @property
    def idle_claim_s(self) -> float:
        """Seconds that a due shard waits before an idle worker claims it without a message: 5 by default."""
        return self.lease_s / 12

    @property
    def watchdog_s(self) -> float:
        """Seconds without a message, while messages and shards wait, before a worker restarts: 30 by default.

        Never less than a worker needs to reconnect once the broker is back.
        """
        return max(10.0, self.lease_s / 2)

    def validate(self) -> None:
        """Check what one setting demands of another, and the URLs. Raises ConfigError that names the setting."""
        orders = (
            (
                "SHARD_BUDGET_S",
                self.hard_limit_s < VISIBILITY_TIMEOUT_S,
                f"SHARD_BUDGET_S must be less than {VISIBILITY_TIMEOUT_S - HARD_LIMIT_MARGIN_S - CALL_GRACE_S}: "
                f"the broker hands a message to another worker after {VISIBILITY_TIMEOUT_S} s",
            ),
            (
                "DRIFT_MIN_SIMILARITY",
                self.drift_min_similarity <= 1.0,
                "DRIFT_MIN_SIMILARITY is a cosine: it must not be more than 1",
            ),
            (
                "NAMESPACE",
                re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", self.namespace) is not None,
                "NAMESPACE must be 1 to 40 lower-case letters, digits, '-' or '_'",
            ),
            (
                "ROOT_PATH",
                re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", self.root_path) is not None,
                "ROOT_PATH must begin with '/' and not end with it, as in /embed",
            ),
            (
                "CORS_ORIGINS",
                all(re.fullmatch(r"\*|https?://[^/\s]+", origin) for origin in self.origins),
                "CORS_ORIGINS must be origins without a path, as in https://a.example,https://b.example, or *",
            ),
            (
                "UNKNOWN_PARAMETERS",
                self.unknown_parameters in ("reject", "warn"),
                "UNKNOWN_PARAMETERS must be reject or warn",
            ),
            ("LOG_FORMAT", self.log_format in ("json", "text"), "LOG_FORMAT must be json or text"),
            (
                "LOG_LEVEL",
                self.log_level.upper() in ("DEBUG", "INFO", "WARNING", "ERROR"),
                "LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR",
            ),
        )
        for name, holds, message in orders:
            if not holds:
                raise ConfigError(PREFIX + message, param=PREFIX + name)
        if self.database_url and not self.database_url.startswith("sqlite"):
            urls.postgres(self.database_url)
        if self.redis_url:
            urls.redis_or_broker(self.redis_url, PREFIX + "REDIS_URL")
        if self.broker_url:
            urls.redis_or_broker(self.broker_url, PREFIX + "BROKER_URL")


def parsed(default: Any, text: str, name: str) -> Any:
    """The value of a variable, of the type of its default. Its text is never quoted: it may be a secret."""
    text = text.strip()  # a line end that a file or a shell left there
    if any(character.isprintable() is False for character in text):
        raise ConfigError(f"{name} holds a character that cannot be printed", param=name)
    if isinstance(default, bool):
        if text.lower() not in BOOLEANS:
            raise ConfigError(f"{name} must be true or false", param=name)
        return BOOLEANS[text.lower()]
    try:
        return Path(text) if isinstance(default, Path) else type(default)(text)
    except ValueError as error:
        kind = "a whole number" if isinstance(default, int) else "a number" if isinstance(default, float) else "valid"
        raise ConfigError(f"{name} is not {kind}", param=name) from error


def _is_service_link(short: str, text: str) -> bool:
    """True for what Kubernetes and Docker put into a container's environment beside a service of our name."""
    if re.fullmatch(r"(\w+_)?SERVICE_(HOST|PORT(_\w+)?)|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", short):
        return True
    # `…_PORT` alone may be a misspelled setting; theirs holds a URL.
    return short.rpartition("_")[2] == "PORT" and "://" in text


def _by_usual_scheme(url: str) -> str:
    """The URL with the scheme that all libraries know, where it has another name for the same protocol."""
    scheme, separator, rest = url.partition("://")
    return urls.SAME_SCHEMES.get(scheme, scheme) + separator + rest
