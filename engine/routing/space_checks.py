"""Space checks: the routes of one model must give equal vectors for equal texts, before more than the first is used.

A model may have routes to several upstreams, which its operator declares to be of one vector space. Before a second one
is used, probe texts are embedded on it and on the first route. Where their vectors agree, the route serves, and is
compared again at intervals while its model is in use. Where they do not, nothing is sent to it until an operator acts.
The state is in the database, for all processes. The reasons are in docs/decisions/0023-space-checks.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import case, delete, select, update

from engine.ledger import usage_rows
from engine.ledger.usage_buffer import UsageBuffer
from engine.observability.telemetry import SPACE_MISMATCH
from engine.planning.token_estimator import estimate
from engine.process.background import logging_errors
from engine.route_state.control_call import NO_INDEX
from engine.routing.drift import add_job_warnings, cosine
from engine.routing.router import ConfiguredRoute, Router
from engine.storage.database import DATABASE_ERRORS, Database
from engine.upstream.call import CallContext, Upstream
from models.base import db_now
from models.embedding import Alias, Batch, Call, Options, Route
from models.errors import EmbedmillError, StorageUnavailable
from models.space_check import SpaceCheck
from models.usage import OPERATOR_PROJECT

log = logging.getLogger("embedmill.spaces")

TEXTS = (
    "The cat sleeps on the warm stone by the river.",
    "Interest rates rose by a quarter of a percent in May.",
    "def area(radius): return 3.14159 * radius ** 2",
)
PURPOSE = "space_check"  # the code of its rows in the ledger
READ_EVERY_S = 5.0
READ_PENDING_EVERY_S = 1.0  # while some route of the model is not verified
RETRY_S = 30.0  # after a check without an answer
# A route that agreed so lately is used although the first route, being down, cannot be compared with.
VERIFIED_FOR_S = 86_400.0


@dataclass(frozen=True, slots=True)
class _Watched:
    """A model with several upstreams: its first route, and one route to each other upstream."""

    alias: Alias
    first: Route
    others: tuple[Route, ...]

    @property
    def options(self) -> Options:
        """Asymmetric routes are compared as they embed documents."""
        is_asymmetric = any(route.is_asymmetric for route in (self.first, *self.others))
        return Options(input_type="document" if is_asymmetric else None)

    @property
    def digest(self) -> str:
        """Identifies what is compared; the same in all processes with this configuration."""
        compared = (self.first.key, TEXTS, self.first.width, self.options.input_type)
        return hashlib.sha256(repr(compared).encode()).hexdigest()


class SpaceMonitor:
    """Checks the models with routes to several upstreams (unless `verify_spaces = false`). Else it does nothing."""

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        router: Router,
        usage: UsageBuffer,
        aliases: Collection[Alias],
        *,
        every_s: float,
        similarity: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._router = router
        self._usage = usage
        self._every_s = every_s
        self._min_similarity = similarity
        self._clock = clock
        self._watched = {alias.name: each for alias in aliases if (each := _watched(alias)) is not None}
        self.has_checks = bool(self._watched)  # False: `refresh` does nothing
        self._next_read: dict[str, float] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        router.unverified = {
            (alias, *route.key): _pending(each.first) for alias, each in self._watched.items() for route in each.others
        }

    async def refresh(self, alias: Alias) -> None:
        """Read what is known of the model's routes, and check in a task those that are due.

        Waits for the first reading only, which tells a new process what others have verified.
        """
        for name in {route.alias for route in alias.routes} & self._watched.keys():
            now = self._clock()
            if now < self._next_read.get(name, now):
                continue
            is_first = not self._next_read
            is_pending = any(key[0] == name for key in self._router.unverified)
            self._next_read[name] = now + min(READ_PENDING_EVERY_S if is_pending else READ_EVERY_S, self._every_s)
            if is_first:
                try:
                    await self._read()
                except DATABASE_ERRORS:
                    log.warning("space checks cannot be read: the database does not answer")
            task = self._tasks.get(name)
            if task is None or task.done():
                self._tasks[name] = asyncio.get_running_loop().create_task(self._check_due(self._watched[name]))

    async def _check_due(self, watched: _Watched) -> None:
        try:
            with logging_errors("a space check failed"):
                rows = await self._read()
                for route in watched.others:
                    if self._is_due(watched, rows.get((watched.alias.name, *route.key))):
                        if await self._claim(watched, route):
                            await self._check(watched, route)
                        await self._read()
        except StorageUnavailable:
            log.warning("space checks wait for the database")

    async def _read(self) -> dict[ConfiguredRoute, Any]:
        """The rows of all watched routes, which decide what the router leaves out."""
        async with self._database.read() as connection:
            query = select(*SpaceCheck.__table__.columns, db_now().label("now"))
            rows = (await connection.execute(query.where(SpaceCheck.alias.in_(self._watched)))).all()
        known: dict[ConfiguredRoute, Any] = {(row.alias, row.account, row.upstream_model): row for row in rows}
        unverified: dict[ConfiguredRoute, str] = {}
        for name, watched in self._watched.items():
            for route in watched.others:
                row = known.get((name, *route.key))
                reason = _reason(watched, row)
                if reason is not None:
                    unverified[name, *route.key] = reason
                is_mismatch = row is not None and row.digest == watched.digest and row.quarantined_at is not None
                SPACE_MISMATCH.labels(*route.key, watched.alias.space).set(is_mismatch)
        self._router.unverified = unverified
        return known

    def _is_due(self, watched: _Watched, row: Any) -> bool:
        if self._router.outages.of(watched.first) is not None:
            return False  # there is nothing to compare with
        if (*watched.first.key, watched.alias.space) in self._router.quarantined:
            return False  # nor are these the space's vectors any more
        if row is None or row.digest != watched.digest:
            return True
        pause_s = self._every_s if row.verified_at is not None else min(RETRY_S, self._every_s)
        return row.quarantined_at is None and bool(row.checked_at < row.now - pause_s)

    async def _claim(self, watched: _Watched, route: Route) -> bool:
        """True when no other process has begun the check meanwhile."""
        name, digest = watched.alias.name, watched.digest
        async with self._database.write() as connection:
            has_other = SpaceCheck.digest != digest
            await connection.execute(delete(SpaceCheck).where(*_where(name, route), has_other))
            added = await connection.execute(
                self._database.insert(SpaceCheck)
                .values(
                    alias=name,
                    account=route.provider,
                    upstream_model=route.upstream_model,
                    digest=digest,
                    checked_at=db_now(),
                )
                .on_conflict_do_nothing()
                .returning(SpaceCheck.alias)
            )
            if added.first() is not None:
                return True
            pause_s = case((SpaceCheck.verified_at.is_(None), min(RETRY_S, self._every_s)), else_=self._every_s)
            is_due = SpaceCheck.checked_at < db_now() - pause_s
            claimed = await connection.execute(
                update(SpaceCheck)
                .where(*_where(name, route), SpaceCheck.quarantined_at.is_(None), is_due)
                .values(checked_at=db_now())
            )
            return bool(claimed.rowcount)

    async def _check(self, watched: _Watched, route: Route) -> None:
        extra = {"provider": route.provider, "model": route.upstream_model}
        try:
            similarity = await self._similarity(watched, route)
            if similarity < self._min_similarity:  # one deviation may be an accident
                similarity = await self._similarity(watched, route)
        except EmbedmillError as error:
            log.info("a space check got no answer", extra=extra | {"code": error.code})
            return
        agrees = similarity >= self._min_similarity
        verdict = "verified_at" if agrees else "quarantined_at"
        async with self._database.write() as connection:
            recorded = await connection.execute(
                update(SpaceCheck)
                .where(*_where(watched.alias.name, route))
                .values({"similarity": similarity, verdict: db_now()})
                .returning(SpaceCheck.verified_at)
            )
            if not agrees and recorded.scalar() is not None:  # it has served since
                key = (*route.key, watched.alias.space)
                await add_job_warnings(connection, key, message=_warning(watched.first, route))
        if not agrees:
            message = "a route is quarantined: its vectors are not those of its model's first route (cosine %.6f)"
            log.error(message, similarity, extra=extra | {"code": "route_quarantined"})

    async def _similarity(self, watched: _Watched, route: Route) -> float:
        """The least cosine of the probe texts' vectors on both routes, now. Raises EmbedmillError."""
        first = await self._embed(watched, watched.first)
        second = await self._embed(watched, route)
        return min(cosine(a.tobytes(), b.tobytes()) for a, b in zip(first, second, strict=True))

    async def _embed(self, watched: _Watched, route: Route) -> list[Any]:
        """The vectors of the probe texts, in float32. Raises EmbedmillError."""
        state, deadline = self._router.state_of(route), time.monotonic() + route.account.timeout_s
        calls: list[Call] = []
        vectors: list[Any] = []
        try:
            context = CallContext(state, deadline, calls, purpose=PURPOSE)
            size = min(len(TEXTS), route.limits.inputs_per_call)
            for low in range(0, len(TEXTS), size):
                texts = list(TEXTS[low : low + size])
                tokens = sum(map(estimate, texts))
                batch = Batch(texts, [NO_INDEX] * len(texts), tokens, route.width, watched.options)
                rows, *_ = await self._upstream.embed(batch, route, context)
                vectors += [np.ascontiguousarray(row, dtype="<f4") for row in rows]
        finally:
            alias = watched.alias.name
            self._usage.add(
                usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias)
            )
        # No other call would find out that it is up again: nobody else calls it.
        self._router.record_success(route, state, 0)
        return vectors

    async def close(self) -> None:
        """Cancel the checks under way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _watched(alias: Alias) -> _Watched | None:
    """The model's routes that are to be compared; None: there are none."""
    if not alias.verify_spaces:
        return None
    first, *rest = sorted(alias.routes, key=lambda route: route.priority)
    others = {route.key: route for route in reversed(rest) if route.key != first.key}
    return _Watched(alias, first, tuple(others.values())) if others else None


def _reason(watched: _Watched, row: Any) -> str | None:
    """Why the route is not used; None: it is."""
    if row is None or row.digest != watched.digest:
        return _pending(watched.first)
    if row.quarantined_at is not None:
        return (
            f"its vectors are not those of account {watched.first.provider} (cosine {row.similarity:.6f}): it is used "
            f"when an operator has looked (`embedmill doctor`)"
        )
    if row.verified_at is None or row.verified_at < row.now - VERIFIED_FOR_S:
        return _pending(watched.first)
    return None


def _warning(first: Route, route: Route) -> str:
    return (
        f"Provider {route.provider} gave other vectors than provider {first.provider} when both were compared again; "
        "nothing more is sent to it."
    )


def _pending(first: Route) -> str:
    return f"it is not verified yet to give the vectors of account {first.provider}"


async def mismatches(database: Database) -> list[Any]:
    """The rows of routes whose vectors are not those of their model's first route, for an operator."""
    async with database.read() as connection:
        query = select(*SpaceCheck.__table__.columns).where(SpaceCheck.quarantined_at.is_not(None))
        return list((await connection.execute(query)).all())


async def forget(database: Database, account: str) -> int:
    """Delete the checks of the account's routes: they are checked anew, and used once they have passed."""
    async with database.write() as connection:
        return int((await connection.execute(delete(SpaceCheck).where(SpaceCheck.account == account))).rowcount)


def _where(alias: str, route: Route) -> tuple[Any, ...]:
    return (
        SpaceCheck.alias == alias,
        SpaceCheck.account == route.provider,
        SpaceCheck.upstream_model == route.upstream_model,
    )
