"""Drift check: embeds a probe text of an account regularly, to notice that another model answers than before.

The first vector is the reference. It is kept in the database, so that all processes compare with the same one. A route
whose vector has changed is quarantined for its space: it gets no calls until an operator ends the quarantine.
The reasons are in docs/decisions/0012-drift-checks.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from sqlalchemy import delete, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.ledger import usage_rows
from engine.ledger.usage_buffer import UsageBuffer
from engine.observability.telemetry import QUARANTINED
from engine.process.background import logging_errors
from engine.route_state.control_call import control_batch
from engine.routing.router import Router
from engine.storage.database import DATABASE_ERRORS, Database
from engine.upstream.call import CallContext, Upstream
from models.base import db_now
from models.drift import DriftCheck
from models.embedding import Alias, Call, Route
from models.errors import EmbedmillError, StorageUnavailable
from models.job import FINISHED, Job
from models.usage import OPERATOR_PROJECT

log = logging.getLogger("embedmill.drift")
CHECK_EVERY_S = 5.0
RouteInSpace = tuple[str, str, str]  # account, upstream model, space


class DriftMonitor:
    """Checks the routes whose account has a probe text (`drift_probe`). Does nothing where none has."""

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
        self._watched: dict[RouteInSpace, Route] = {
            (route.provider, route.upstream_model, alias.space): route
            for alias in aliases
            for route in alias.routes
            if route.account.drift_probe
        }
        self.has_probes = bool(self._watched)  # False: nothing is checked, and `refresh` does nothing
        self._alias_of = {
            (route.provider, route.upstream_model): alias.name for alias in aliases for route in alias.routes
        }
        self._next_check = 0.0
        self._task: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Read the quarantined routes, and check in a task the routes that are due.

        Waits for the first reading only, so that no call of this process goes to a quarantined route.
        """
        if not self.has_probes or self._clock() < self._next_check:
            return
        is_first = not self._next_check
        self._next_check = self._clock() + min(CHECK_EVERY_S, self._every_s)
        if is_first:
            try:
                await self._read_quarantined()
            except DATABASE_ERRORS:
                log.warning("drift checks cannot be read: the database does not answer")
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._check_due())

    async def _check_due(self) -> None:
        try:
            with logging_errors("a drift check failed"):
                for key, route in self._watched.items():
                    reference = await self._claim_check(key, route)
                    if reference is not None:
                        await self._check(key, route, reference.vector)
                await self._read_quarantined()
        except StorageUnavailable:
            log.warning("drift checks wait for the database")

    async def _read_quarantined(self) -> None:
        async with self._database.read() as connection:
            rows = (
                await connection.execute(
                    select(*DriftCheck.__table__.columns).where(DriftCheck.quarantined_at.is_not(None))
                )
            ).all()
        self._router.quarantined = frozenset((row.account, row.upstream_model, row.space) for row in rows)
        for key in self._watched:
            QUARANTINED.labels(*key).set(key in self._router.quarantined)

    async def _claim_check(self, key: RouteInSpace, route: Route) -> Any:
        """The row of the route when its check is due and no other process makes it; else None."""
        digest = hashlib.sha256((route.account.drift_probe or "").encode()).hexdigest()
        account, upstream_model, space = key
        fresh = {"text_digest": digest, "vector": None, "checked_at": db_now(), "quarantined_at": None}
        async with self._database.write() as connection:
            # A new probe text needs a new reference.
            has_other_text = DriftCheck.text_digest != digest
            await connection.execute(delete(DriftCheck).where(*_where(key), has_other_text))
            added = await connection.execute(
                self._database.insert(DriftCheck)
                .values(account=account, upstream_model=upstream_model, space=space, **fresh)
                .on_conflict_do_nothing()
                .returning(DriftCheck.vector)
            )
            if (row := added.one_or_none()) is not None:
                return row
            due = or_(DriftCheck.checked_at < db_now() - self._every_s, DriftCheck.vector.is_(None))
            claimed = await connection.execute(
                update(DriftCheck)
                .where(*_where(key), DriftCheck.quarantined_at.is_(None), due)
                .values(checked_at=db_now())
                .returning(DriftCheck.vector)
            )
            return claimed.one_or_none()

    async def _check(self, key: RouteInSpace, route: Route, reference: bytes | None) -> None:
        try:
            vector = await self._embed_probe(route)
            similarity = 1.0 if reference is None else cosine(vector, reference)
            if similarity < self._min_similarity:
                # One deviation may be an accident.
                vector = await self._embed_probe(route)
                similarity = cosine(vector, reference or vector)
        except EmbedmillError as error:
            log.info("a drift check got no answer", extra={"provider": key[0], "model": key[1], "code": error.code})
            return
        async with self._database.write() as connection:
            if reference is None:
                first = update(DriftCheck).where(*_where(key), DriftCheck.vector.is_(None))
                await connection.execute(first.values(vector=vector, similarity=1.0))
                return
            changed = similarity < self._min_similarity
            values = {"similarity": similarity, "quarantined_at": db_now() if changed else None}
            await connection.execute(update(DriftCheck).where(*_where(key)).values(values))
            if changed:
                await add_job_warnings(connection, key)
        if changed:
            log.error(
                "a route is quarantined: it failed its drift check (cosine %.6f)",
                similarity,
                extra={"provider": key[0], "model": key[1], "code": "route_quarantined"},
            )

    async def _embed_probe(self, route: Route) -> bytes:
        """The vector of the probe text now. Raises EmbedmillError."""
        batch = control_batch(route.width, text=route.account.drift_probe or "")
        deadline = time.monotonic() + route.account.timeout_s
        calls: list[Call] = []
        try:
            context = CallContext(self._router.state_of(route), deadline, calls, purpose="drift_check")
            rows, *_ = await self._upstream.embed(batch, route, context)
        finally:
            alias = self._alias_of[route.provider, route.upstream_model]
            self._usage.add(
                usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias)
            )
        return np.ascontiguousarray(rows[0], dtype="<f4").tobytes()

    async def close(self) -> None:
        """Cancel the check under way."""
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


async def add_job_warnings(
    connection: AsyncConnection, key: RouteInSpace, job_id: str | None = None, message: str | None = None
) -> None:
    """Add a warning about the quarantine to the unfinished jobs of the space, or to one job."""
    which = Job.id == job_id if job_id else Job.space == key[2]
    message = message or f"Provider {key[0]} answers with another model than before; nothing more is sent to it."
    warning = {"code": "route_quarantined", "message": message}
    found = select(Job.id, Job.warnings).where(
        which, Job.status.not_in([str(status) for status in FINISHED]), Job.deleted_at.is_(None)
    )
    for row in (await connection.execute(found.order_by(Job.id).with_for_update(key_share=True))).all():
        if warning not in row.warnings:
            values = {Job.warnings: [*row.warnings, warning], Job.version: Job.version + 1}
            await connection.execute(update(Job).where(Job.id == row.id).values(values))


async def add_job_warning(database: Database, alias: Alias, quarantined: frozenset[RouteInSpace], job_id: str) -> None:
    """Add warnings about quarantined routes of its model to a job. Raises StorageUnavailable."""
    async with database.write() as connection:
        for route in alias.routes:
            key = (route.provider, route.upstream_model, alias.space)
            if key in quarantined:
                await add_job_warnings(connection, key, job_id)


async def quarantined(database: Database) -> list[Any]:
    """The rows of quarantined routes, for an operator."""
    async with database.read() as connection:
        rows = await connection.execute(
            select(*DriftCheck.__table__.columns).where(DriftCheck.quarantined_at.is_not(None))
        )
        return list(rows.all())


async def unquarantine(database: Database, account: str) -> int:
    """Delete the references of the account's routes: they serve again, and their next vectors are the references."""
    async with database.write() as connection:
        return int((await connection.execute(delete(DriftCheck).where(DriftCheck.account == account))).rowcount)


def _where(key: RouteInSpace) -> tuple[Any, ...]:
    return DriftCheck.account == key[0], DriftCheck.upstream_model == key[1], DriftCheck.space == key[2]
