"""Composition root: opens all parts of a process and closes them. Tests pass their fakes in here."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from engine.access.keys import KeyAuthenticator, load_pepper
from engine.config import config_file
from engine.config.proxies import proxy_url
from engine.config.settings import Settings
from engine.config.suggestions import did_you_mean
from engine.durability.call_journal import CallJournal
from engine.durability.spool import Spool
from engine.job_store import JobStore
from engine.ledger.usage_buffer import UsageBuffer
from engine.limiter.registry import LimiterRegistry
from engine.observability import failpoints
from engine.process.background import surviving
from engine.process.clock import DatabaseClock
from engine.process.data_folder import make_data_folder
from engine.process.memory_budget import ByteBudget
from engine.process.work_threads import WorkThreads
from engine.queue.broker import Notifier, key_prefix
from engine.routing.drift import DriftMonitor
from engine.routing.health_probes import HealthProbes
from engine.routing.outages import Outages
from engine.routing.router import Router
from engine.routing.space_checks import SpaceMonitor
from engine.storage.database import Database
from engine.storage.object_store import ObjectStore, open_object_store
from engine.storage.upload_leases import UploadLeases
from engine.upstream.call import Transport, Upstream
from engine.upstream.http import HttpTransport
from models.embedding import Alias
from models.errors import UnknownAlias

log = logging.getLogger("embedmill.runtime")


@dataclass(slots=True)
class Runtime:
    """All long-lived parts of one process."""

    settings: Settings
    aliases: dict[str, Alias]
    bare_names: dict[str, str]  # names of models without their creator, where only one model has it
    database: Database
    objects: ObjectStore
    store: JobStore
    limiters: LimiterRegistry
    upstream: Upstream
    router: Router
    drift_monitor: DriftMonitor
    health_probes: HealthProbes
    space_monitor: SpaceMonitor
    notifier: Notifier
    keys: KeyAuthenticator
    usage: UsageBuffer
    journal: CallJournal
    spool: Spool
    work: WorkThreads
    bodies: ByteBudget
    upload_leases: UploadLeases
    # Set when this process is about to stop: shards in hand start no new call, keep what lands, and go back.
    draining: asyncio.Event
    # Unix seconds of the configuration's last change: since then its models have been as they are.
    configured_at: int = 0
    # What goes on beside the work: ends of shards that wait for a database that is away, rings of a slow broker.
    settling: set[asyncio.Task[None]] = field(default_factory=set)
    # Shards whose paid results the database refuses until an operator acts: while there is one, none is claimed here.
    blocked_shards: set[str] = field(default_factory=set)
    database_clock: DatabaseClock = field(default_factory=DatabaseClock)

    @classmethod
    def open(cls, settings: Settings, *, wire: Transport | None = None, pool_size: int = 5) -> Runtime:
        """Build all parts. Nothing connects yet, and nothing is bound to an event loop. Raises ConfigError."""
        failpoints.arm(settings.failpoints)
        make_data_folder(settings.data_dir)
        aliases = config_file.load(settings.config, data_dir=settings.data_dir)
        database = Database(settings.sqlalchemy_url, pool_size=pool_size)
        accounts = [route.account for alias in aliases.values() for route in alias.routes]
        proxy = settings.upstream_proxy.strip()
        if proxy:
            proxy_url(proxy, "EMBEDMILL_UPSTREAM_PROXY")
        work = WorkThreads()
        limiters = LimiterRegistry(settings.redis, key_prefix(settings.namespace))
        upstream = Upstream(
            wire or HttpTransport(proxy=proxy),
            accounts,
            limiters,
            max_reply_bytes=settings.max_reply_bytes,
            work=work,
        )
        router = Router(limiters, Outages(database))
        usage = UsageBuffer(database, Spool(settings.data_dir / "usage", max_bytes=settings.spool_max_bytes))
        return cls(
            settings=settings,
            aliases=aliases,
            bare_names=config_file.bare_names(aliases),
            database=database,
            objects=open_object_store(settings.objects_url, settings.data_dir),
            store=JobStore(database, settings),
            limiters=limiters,
            upstream=upstream,
            router=router,
            drift_monitor=DriftMonitor(
                database,
                upstream,
                router,
                usage,
                list(aliases.values()),
                every_s=settings.drift_check_every_s,
                similarity=settings.drift_min_similarity,
            ),
            health_probes=HealthProbes(upstream, router, usage),
            space_monitor=SpaceMonitor(
                database,
                upstream,
                router,
                usage,
                list(aliases.values()),
                every_s=settings.drift_check_every_s,
                similarity=settings.drift_min_similarity,
            ),
            notifier=Notifier(settings.broker, settings.namespace),
            keys=KeyAuthenticator(database, load_pepper(settings.key_pepper, settings.data_dir)),
            usage=usage,
            journal=CallJournal(settings.data_dir / "flights"),
            spool=Spool(settings.data_dir / "spool", max_bytes=settings.spool_max_bytes),
            work=work,
            bodies=ByteBudget(settings.max_held_bytes, settings.max_held_bytes_per_project),
            upload_leases=UploadLeases(
                settings.sqlalchemy_url,
                lease_s=settings.lease_s,
                heartbeat_s=settings.heartbeat_s,
                resume_s=settings.upload_resume_s,
            ),
            draining=asyncio.Event(),
            configured_at=config_file.changed_at(settings.config),
        )

    def alias(self, name: str) -> Alias:
        """The alias of this name. Raises UnknownAlias."""
        alias = self.aliases.get(name) or self.aliases.get(self.bare_names.get(name, ""))
        if alias is None:
            raise UnknownAlias(
                f"The model `{name[:200]}` does not exist or you do not have access to it."
                f"{did_you_mean(name, self.aliases)} GET /v1/models lists those that there are.",
                param="model",
            )
        return alias

    async def close(self) -> None:
        """Close all parts, in reverse order of need. An error of one is logged, and leaves no other open."""
        self.upload_leases.close()
        self.work.close()
        for task in self.settling:
            task.cancel()
        await asyncio.gather(*self.settling, return_exceptions=True)
        async with contextlib.AsyncExitStack() as parts:  # the last one first
            parts.push_async_callback(_closed, "database", self.database.close)
            parts.push_async_callback(_closed, "objects", self.objects.close)
            parts.push_async_callback(_closed, "broker", self.notifier.close)
            parts.push_async_callback(_closed, "upstream", self.upstream.close)
            parts.push_async_callback(_closed, "keys", self.keys.close)
            parts.push_async_callback(_closed, "usage", self.usage.close)
            parts.push_async_callback(_closed, "flights", self.journal.close)
            parts.push_async_callback(_closed, "outages", self.router.close)
            parts.push_async_callback(_closed, "drift monitor", self.drift_monitor.close)
            parts.push_async_callback(_closed, "health probes", self.health_probes.close)
            parts.push_async_callback(_closed, "space monitor", self.space_monitor.close)


async def _closed(name: str, close: Callable[[], Awaitable[None] | None]) -> None:
    """Close one part. Its error ends nothing: all that is left must still be closed."""
    with surviving(lambda error: log.error("%s could not be closed", name, exc_info=error)):
        closing = close()
        if closing is not None:
            await closing
