"""Outages: the routes that are down, why and since when, and their next health probes. Shared through the database.

A route is down when a call that says nothing about its inputs failed: no connection, a refused credential, an unknown
model, or a fault that a control call met too. While it is down, one health probe at a time, of all processes, calls it;
the first success ends the outage for all processes. Nothing is read or written here while no route is down.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, select, update

from engine.observability.telemetry import ROUTES_DOWN
from engine.routing.outage_causes import Cause, cause_of
from engine.storage.database import Database
from models.base import db_now
from models.embedding import Route, RouteKey
from models.errors import EmbedmillError, StorageUnavailable, UpstreamError, UpstreamRateLimited
from models.outage import RouteOutage

log = logging.getLogger("embedmill.outages")

# Pauses between health probes double from the first to the cap, which bounds how late the end of an outage is noticed.
FIRST_PAUSE_S = 1.0
PAUSE_CAP_S = 5.0
# A probe that has not ended after so long no longer keeps other processes from the next one.
PROBE_CLAIM_S = 6.0
REFRESH_EVERY_S = 1.5  # longer than the watch of running shards, which reads for a refresh where there is no outage
MAX_AGE_TO_REFUSE_S = 0.5  # of what is known, where a call is refused for it: the outage may have ended elsewhere
LOG_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Outage:
    """One route that is down. Instants on the event loop's clock, except `since`."""

    cause: Cause
    since: float  # unix seconds
    next_attempt: float
    failures: int = 0
    is_stored: bool = False  # in the database, as far as is known
    probe_until: float = -math.inf  # a health probe, of any process, is under way at the longest until then

    @property
    def next_attempt_in_s(self) -> float:
        """Seconds until the next health probe is due."""
        return max(0.0, self.next_attempt - _now())

    @property
    def is_probe_under_way(self) -> bool:
        """True while some process makes a health probe."""
        return self.probe_until > _now()


def new_outage(cause: Cause) -> Outage:
    """An outage that no call has met, such as an incomplete configuration."""
    return Outage(cause, time.time(), _now() + PAUSE_CAP_S)


class Outages:
    """The outages that this process knows, kept equal to the table of all processes where there is a database."""

    def __init__(self, database: Database | None = None) -> None:
        self._database = database
        self.active: dict[RouteKey, Outage] = {}  # as far as this process knows
        self._ended: set[RouteKey] = set()  # ended here, but not removed from the database yet
        self._changed = asyncio.Event()
        self._read_at = -REFRESH_EVERY_S
        self._logged: dict[RouteKey, tuple[str, float]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def of(self, route: Route) -> Outage | None:
        """The route's outage, where it is down."""
        return self.active.get(route.key) if self.active else None

    def report(self, route: Route, error: UpstreamError) -> Outage:
        """Mark the route as down: any call would meet `error`."""
        cause = cause_of(route.account, error)
        outage = self.active.get(route.key)
        if outage is None:
            outage = Outage(cause, time.time(), _now() + FIRST_PAUSE_S)
            ROUTES_DOWN.labels(*route.key).set(1)
        self._set(route.key, replace(outage, cause=cause))
        self._log(route.key, cause)
        self._write(self._store(route.key))
        return outage

    def probe_failed(self, route: Route, error: EmbedmillError) -> None:
        """The health probe that this process claimed met `error`: schedule the next one."""
        key = route.key
        outage = self.active.get(key)
        if outage is None:
            return
        if isinstance(error, UpstreamError) and not isinstance(error, UpstreamRateLimited):
            outage = replace(outage, cause=cause_of(route.account, error), failures=outage.failures + 1)
            self._log(key, outage.cause)
        pause_s = min(PAUSE_CAP_S, FIRST_PAUSE_S * 2.0**outage.failures)
        self._set(key, replace(outage, next_attempt=_now() + pause_s, probe_until=-math.inf))
        self._write(self._store(key, reschedules=True))

    def resolve(self, route: Route) -> None:
        """The route answered: its outage is over, for every process."""
        if not self.active or self.active.pop(route.key, None) is None:
            return
        key = route.key
        ROUTES_DOWN.labels(*key).set(0)
        self._logged.pop(key, None)
        log.info("a provider answers again", extra={"provider": key[0], "model": key[1]})
        self._signal()
        if self._database is not None:
            self._ended.add(key)
            self._write(self._remove())

    async def claim_probe(self, route: Route) -> bool:
        """True when this process may make the health probe: one is due, and no other process makes it."""
        key = route.key
        outage = self.active.get(key)
        if outage is None or outage.next_attempt > _now():
            return False
        until = _now() + PROBE_CLAIM_S
        self._set(key, replace(outage, next_attempt=until, probe_until=until))
        if self._database is None or not outage.is_stored:
            return True
        try:
            async with self._database.write() as connection:
                claimed = await connection.execute(
                    update(RouteOutage)
                    .where(*_where(key), RouteOutage.next_attempt_at <= db_now())
                    .values(next_attempt_at=db_now() + PROBE_CLAIM_S, probe_until=db_now() + PROBE_CLAIM_S)
                )
        except StorageUnavailable:
            return True  # without the database, each process probes by itself
        if not claimed.rowcount:
            await self.refresh(max_age_s=0.0)
        return bool(claimed.rowcount)

    async def probe_now(self, account: str) -> None:
        """The account's secret has changed: health probes of its routes are due, for every process.

        Raises StorageUnavailable.
        """
        for key, outage in list(self.active.items()):
            if key[0] == account:
                self._set(key, replace(outage, next_attempt=_now()))
        if self._database is not None:
            async with self._database.write() as connection:
                await connection.execute(
                    update(RouteOutage).where(RouteOutage.account == account).values(next_attempt_at=db_now())
                )

    async def changed(self) -> None:
        """Wait until an outage has begun, changed or ended, as far as this process knows."""
        await self._changed.wait()

    async def refresh(self, *, max_age_s: float = REFRESH_EVERY_S) -> None:
        """Read the outages of all processes from the database, unless what is known is younger."""
        if self._database is None or _now() < self._read_at + max_age_s:
            return
        self._read_at = _now()
        # Outages that this process stores or ends while the rows are read: the rows may say otherwise.
        before = self.active.copy()
        try:
            await self._remove()
            async with self._database.read() as connection:
                rows = (await connection.execute(select(*RouteOutage.__table__.columns, db_now().label("now")))).all()
        except StorageUnavailable:
            return
        found: dict[RouteKey, Outage] = {}
        for row in rows:
            cause = Cause(row.account, row.code, row.message, row.advice, row.status)
            next_attempt = _now() + min(PROBE_CLAIM_S, row.next_attempt_at - row.now)
            key = (row.account, row.upstream_model)
            probe_until = -math.inf if row.probe_until is None else _now() + row.probe_until - row.now
            found[key] = Outage(cause, row.since, next_attempt, row.failures, True, probe_until)
            if key not in self.active:
                ROUTES_DOWN.labels(*key).set(1)
        for key, outage in self.active.items():
            if key not in before or not before[key].is_stored:
                found.setdefault(key, outage)
            elif key not in found:
                ROUTES_DOWN.labels(*key).set(0)
        for key in found.keys() & (self._ended | before.keys() - self.active.keys()):
            del found[key]
            ROUTES_DOWN.labels(*key).set(0)
        has_news = found.keys() != self.active.keys()
        self.active = found
        if has_news:
            self._signal()

    def table_is_empty(self) -> None:
        """The table was just read, and is empty: unless this process knows more, a refresh would find nothing new."""
        if not self.active and not self._ended:
            self._read_at = _now()

    async def close(self) -> None:
        """Wait for the writes under way."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    def _set(self, key: RouteKey, outage: Outage) -> None:
        self.active[key] = outage
        self._ended.discard(key)
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _log(self, key: RouteKey, cause: Cause) -> None:
        """One line for each change of an outage, and one a minute while it lasts."""
        code, at = self._logged.get(key, ("", 0.0))
        if code == cause.code and _now() - at < LOG_EVERY_S:
            return
        self._logged[key] = (cause.code, _now())
        log.warning(
            "a provider cannot be used: %s",
            cause.message,
            extra={
                "provider": key[0],
                "model": key[1],
                "code": cause.code,
                "status": cause.status,
                "advice": cause.advice,
            },
        )

    def _write(self, work: Coroutine[Any, Any, None]) -> None:
        if self._database is None:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _store(self, key: RouteKey, *, reschedules: bool = False) -> None:
        """Write the outage. Only the process that made a health probe reschedules the next one."""
        outage = self.active.get(key)
        if outage is None or self._database is None:
            return
        columns = {
            "code": outage.cause.code[:64],
            "message": outage.cause.message,
            "advice": outage.cause.advice,
            "status": outage.cause.status,
        }
        schedule = {"failures": outage.failures, "next_attempt_at": db_now() + outage.next_attempt_in_s}
        schedule["probe_until"] = None
        statement = (
            self._database.insert(RouteOutage)
            .values(account=key[0], upstream_model=key[1], since=db_now(), **columns, **schedule)
            .on_conflict_do_update(
                index_elements=["account", "upstream_model"], set_={**columns, **(schedule if reschedules else {})}
            )
        )
        try:
            async with self._database.write() as connection:
                await connection.execute(statement)
        except StorageUnavailable:
            return
        if (current := self.active.get(key)) is not None:
            self.active[key] = replace(current, is_stored=True)

    async def _remove(self) -> None:
        if self._database is None or not (ended := list(self._ended)):
            return
        try:
            async with self._database.write() as connection:
                for key in ended:
                    await connection.execute(delete(RouteOutage).where(*_where(key)))
        except StorageUnavailable:
            return  # the next refresh tries again
        self._ended.difference_update(ended)


def _where(key: RouteKey) -> tuple[Any, ...]:
    return RouteOutage.account == key[0], RouteOutage.upstream_model == key[1]


def _now() -> float:
    """The event loop's clock, which tests may speed up; outside of a loop time.monotonic()."""
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()
