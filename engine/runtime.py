"""Everything opened once and closed once. Tests and edges get their parts from here, and fakes enter here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from engine import configuration, failpoints, routing
from engine.canary import Canaries
from engine.database import Database
from engine.flight_log import FlightLog
from engine.keys import KeyRing, load_pepper
from engine.queue import Doorbell
from engine.routing import Router
from engine.settings import Settings
from engine.spool import Spool
from engine.upstream import Transport, Upstream
from engine.usage import UsageBuffer
from engine.wire import Wire
from models.embedding import Alias, Options
from models.errors import UnknownAlias


@dataclass(slots=True)
class Runtime:
    settings: Settings
    aliases: dict[str, Alias]
    database: Database
    upstream: Upstream
    router: Router
    canaries: Canaries
    doorbell: Doorbell
    keys: KeyRing
    usage: UsageBuffer
    flights: FlightLog
    spool: Spool
    # Set when this process is about to stop: shards in hand start no new call, keep what lands, and go back.
    draining: asyncio.Event
    # What goes on beside the work: ends of shards that wait for a database that is away, rings of a slow broker.
    settling: set[asyncio.Task[None]] = field(default_factory=set)

    @classmethod
    def open(cls, settings: Settings, *, wire: Transport | None = None, pool_size: int = 5) -> Runtime:
        """Build all parts. Nothing connects yet, and nothing is bound to an event loop. Raises ConfigError."""
        failpoints.arm(settings.failpoints)
        aliases = configuration.load(settings.config)
        database = Database(settings.sqlalchemy_url, pool_size=pool_size)
        accounts = [route.account for alias in aliases.values() for route in alias.routes]
        upstream = Upstream(
            wire or Wire(), accounts, max_reply_bytes=settings.max_reply_bytes, redis_url=settings.redis
        )
        router = Router()
        return cls(
            settings=settings,
            aliases=aliases,
            database=database,
            upstream=upstream,
            router=router,
            canaries=Canaries(
                database,
                upstream,
                router,
                aliases.values(),
                every_s=settings.canary_every_s,
                similarity=settings.canary_similarity,
            ),
            doorbell=Doorbell(settings.broker),
            keys=KeyRing(database, load_pepper(settings.key_pepper, settings.data_dir)),
            usage=UsageBuffer(database),
            flights=FlightLog(settings.data_dir / "flights"),
            spool=Spool(settings.data_dir / "spool", max_bytes=settings.spool_bytes),
            draining=asyncio.Event(),
        )

    def alias(self, name: str) -> Alias:
        """The alias of this name. Raises UnknownAlias."""
        try:
            return self.aliases[name]
        except KeyError:
            raise UnknownAlias(
                f"The model `{name[:200]}` does not exist or you do not have access to it.", param="model"
            ) from None

    def narrowed(self, alias: Alias, options: Options) -> Alias:
        """The alias with the routes that the caller's own options leave. Raises InvalidInput, UnknownAlias."""
        return routing.narrowed(self.aliases, alias, options.provider_options)

    async def close(self) -> None:
        for task in self.settling:
            task.cancel()
        await asyncio.gather(*self.settling, return_exceptions=True)
        await self.canaries.close()
        self.flights.close()
        await self.usage.close()
        await self.keys.close()
        await self.upstream.close()
        self.doorbell.close()
        await self.database.close()
