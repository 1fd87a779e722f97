"""Drift checks: a text is embedded again at intervals, to notice that another model answers than before.

The first answer is kept in the database, so that all processes compare with the same one, whatever restarts. A route
whose answer has changed is quarantined for its space: nothing is sent there until an operator has released it. Why the
database, and why like this: docs/decisions/0012-drift-checks.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Collection
from typing import Any

import numpy as np
from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.ledger import usage_rows
from engine.ledger.usage_buffer import UsageBuffer
from engine.observability.telemetry import QUARANTINED
from engine.planning import tokens
from engine.routing.router import Router
from engine.storage.database import DATABASE_ERRORS, Database
from engine.upstream.call import Upstream
from models.base import db_now
from models.drift import DriftCheck
from models.embedding import Alias, Batch, Call, Options, Route
from models.errors import EmbedmillError, StorageUnavailable
from models.job import FINISHED, Job
from models.usage import OPERATOR_PROJECT

log = logging.getLogger("embedmill.drift")
LOOK_EVERY_S = 5.0
Place = tuple[str, str, str]  # account, upstream model, space


class DriftMonitor:
    """Looks after the routes whose account has a drift probe. Costs nothing where none has one."""

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
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._router = router
        self._usage = usage
        self._every_s = every_s
        self._similarity = similarity
        self._watched: dict[Place, Route] = {
            (route.provider, route.upstream_model, alias.space): route
            for alias in aliases
            for route in alias.routes
            if route.account.drift_probe
        }
        self._alias_of = {
            (route.provider, route.upstream_model): alias.name for alias in aliases for route in alias.routes
        }
        self._look_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Know the quarantined routes, and check those that are due, beside the caller's work.

        Only the first look of a process is waited for, without its checks: no call may go where none should.
        """
        if not self._watched or time.monotonic() < self._look_at:
            return
        first = not self._look_at
        self._look_at = time.monotonic() + min(LOOK_EVERY_S, self._every_s)
        if first:
            try:
                await self._read()
            except DATABASE_ERRORS:
                log.warning("drift checks cannot be read: the database does not answer")
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._check_due())

    async def _check_due(self) -> None:
        try:
            for place, route in self._watched.items():
                reference = await self._take_turn(place, route)
                if reference is not None:
                    await self._check(place, route, reference.vector)
            await self._read()
        except StorageUnavailable:
            log.warning("drift checks wait for the database")
        except Exception:
            log.exception("a drift check failed")

    async def _read(self) -> None:
        async with self._database.read() as connection:
            rows = (
                await connection.execute(
                    select(*DriftCheck.__table__.columns).where(DriftCheck.quarantined_at.is_not(None))
                )
            ).all()
        self._router.quarantined = frozenset((row.account, row.upstream_model, row.space) for row in rows)
        for place in self._watched:
            QUARANTINED.labels(*place).set(place in self._router.quarantined)

    async def _take_turn(self, place: Place, route: Route) -> Any:
        """The row of the drift check when it is due and nobody else checks it; else None."""
        digest = hashlib.sha256((route.account.drift_probe or "").encode()).hexdigest()
        account, upstream_model, space = place
        fresh = {"text_digest": digest, "vector": None, "checked_at": db_now(), "quarantined_at": None}
        async with self._database.write() as connection:
            # Another probe text starts a new check.
            changed = DriftCheck.text_digest != digest
            await connection.execute(delete(DriftCheck).where(*_at(place), changed))
            added = await connection.execute(
                self._database.insert(DriftCheck)
                .values(account=account, upstream_model=upstream_model, space=space, **fresh)
                .on_conflict_do_nothing()
                .returning(DriftCheck.vector)
            )
            if (row := added.one_or_none()) is not None:
                return row
            due = or_(DriftCheck.checked_at < db_now() - self._every_s, DriftCheck.vector.is_(None))
            mine = await connection.execute(
                update(DriftCheck)
                .where(*_at(place), DriftCheck.quarantined_at.is_(None), due)
                .values(checked_at=db_now())
                .returning(DriftCheck.vector)
            )
            return mine.one_or_none()

    async def _check(self, place: Place, route: Route, reference: bytes | None) -> None:
        try:
            answer = await self._ask(route)
            alike = 1.0 if reference is None else cosine(answer, reference)
            if alike < self._similarity:
                # Once may be an accident.
                answer = await self._ask(route)
                alike = cosine(answer, reference or answer)
        except EmbedmillError as error:
            log.info("a drift check got no answer", extra={"provider": place[0], "model": place[1], "code": error.code})
            return
        async with self._database.write() as connection:
            if reference is None:
                first = update(DriftCheck).where(*_at(place), DriftCheck.vector.is_(None))
                await connection.execute(first.values(vector=answer, similarity=1.0))
                return
            changed = alike < self._similarity
            values = {"similarity": alike, "quarantined_at": db_now() if changed else None}
            await connection.execute(update(DriftCheck).where(*_at(place)).values(values))
            if changed:
                await warn_jobs(connection, place)
        if changed:
            log.error(
                "a route is quarantined: it failed its drift check (cosine %.6f)",
                alike,
                extra={"provider": place[0], "model": place[1], "code": "route_quarantined"},
            )

    async def _ask(self, route: Route) -> bytes:
        text = route.account.drift_probe or ""
        batch = Batch([text], [0], tokens.estimate(text), route.width, Options())
        deadline = time.monotonic() + route.account.timeout_s
        calls: list[Call] = []
        try:
            rows, _ = await self._upstream.embed(batch, route, deadline=deadline, calls=calls, test="drift_check")
        finally:
            alias = self._alias_of[route.provider, route.upstream_model]
            self._usage.add(
                usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias)
            )
        return np.ascontiguousarray(rows[0], dtype="<f4").tobytes()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def cosine(one: bytes, other: bytes) -> float:
    """The cosine of two float32 vectors; 0 when their widths differ."""
    if len(one) != len(other):
        return 0.0
    a, b = (np.frombuffer(each, dtype="<f4").astype(np.float64) for each in (one, other))
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


async def warn_jobs(connection: AsyncConnection, place: Place, job_id: str | None = None) -> None:
    """Say so in the unfinished jobs of the space, or in this one."""
    chosen = Job.id == job_id if job_id else Job.space == place[2]
    warning = {
        "code": "route_quarantined",
        "message": f"Provider {place[0]} answers with another model than before; nothing more is sent to it.",
    }
    found = select(Job.id, Job.warnings).where(
        chosen, Job.status.not_in([str(status) for status in FINISHED]), Job.deleted_at.is_(None)
    )
    for row in (await connection.execute(found.order_by(Job.id).with_for_update(key_share=True))).all():
        if warning not in row.warnings:
            values = {Job.warnings: [*row.warnings, warning], Job.version: Job.version + 1}
            await connection.execute(update(Job).where(Job.id == row.id).values(values))


async def warn(database: Database, alias: Alias, quarantined: frozenset[Place], job_id: str) -> None:
    """Say in this job that routes of its model are quarantined. Raises StorageUnavailable."""
    async with database.write() as connection:
        for route in alias.routes:
            place = (route.provider, route.upstream_model, alias.space)
            if place in quarantined:
                await warn_jobs(connection, place, job_id)


async def quarantined(database: Database) -> list[Any]:
    """The rows of quarantined routes, for people."""
    async with database.read() as connection:
        rows = await connection.execute(
            select(*DriftCheck.__table__.columns).where(DriftCheck.quarantined_at.is_not(None))
        )
        return list(rows.all())


async def release(database: Database, account: str) -> int:
    """Forget what the account's routes answered: they serve again, and their next answers are the references."""
    async with database.write() as connection:
        return int((await connection.execute(delete(DriftCheck).where(DriftCheck.account == account))).rowcount)


def _at(place: Place) -> tuple[Any, ...]:
    return DriftCheck.account == place[0], DriftCheck.upstream_model == place[1], DriftCheck.space == place[2]
