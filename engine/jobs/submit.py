"""Submit: a corpus becomes a job and its shards, while it arrives.

A small corpus is one transaction: no answer before it, nothing of the job without it. A large one is written shard by
shard, and its first shards run while its last lines are still under way; `intake_until` is the lease that tells the
sweep when the receiving process has died with a corpus half read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import ColumnElement, and_, case, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine import failpoints
from engine.corpus import Lines
from engine.jobs import twins
from engine.jobs.cutting import Cut, Cutter, Wanted
from engine.jobs.dispatch import ring_soon
from engine.jobs.ending import end_early, forget
from engine.jobs.finish import FINAL_STATUS, merge_errors
from engine.jobs.turns import newcomer
from engine.keys import Caller
from engine.runtime import Runtime
from models.base import db_now, new_id
from models.errors import Conflict, EmbedmillError, InvalidInput, StorageUnavailable
from models.job import UNDER_WAY, IdempotencyKey, InputFailure, Job, JobStatus, Shard, ShardInputs, ShardState

log = logging.getLogger("embedmill.jobs")
_PACK = msgspec.msgpack.Encoder()


@dataclass(frozen=True, slots=True)
class Replay:
    """The same Idempotency-Key was used before, by a request whose body had this fingerprint."""

    job_id: str
    fingerprint: bytes


async def reserve(runtime: Runtime, project: str, key: str) -> str | Replay:
    """Claim an Idempotency-Key: the id that the new job shall have, or the job that it stands for already.

    Raises Conflict while another request with this key is still arriving.
    """
    job_id = new_id("job")
    async with runtime.database.write() as connection:
        fresh = {
            "job_id": job_id,
            "fingerprint": None,
            "expires_at": db_now() + runtime.settings.lease_s,
        }
        statement = (
            runtime.database.insert(IdempotencyKey)
            .values(project=project, key=key, **fresh)
            .on_conflict_do_update(
                index_elements=["project", "key"], set_=fresh, where=IdempotencyKey.expires_at < db_now()
            )
            .returning(IdempotencyKey.job_id)
        )
        if (await connection.execute(statement)).scalar_one_or_none() == job_id:
            return job_id
        row = (
            await connection.execute(
                select(IdempotencyKey.job_id, IdempotencyKey.fingerprint).where(
                    IdempotencyKey.project == project, IdempotencyKey.key == key
                )
            )
        ).one()
    if row.fingerprint is None:
        raise Conflict(
            "a request with this Idempotency-Key is still being read", code="idempotency_in_flight", should_retry=True
        )
    return Replay(row.job_id, row.fingerprint)


class Intake:
    """A job on its way in. Use through `receiving()`; feed lines, then finish."""

    def __init__(
        self, runtime: Runtime, caller: Caller, wanted: Wanted, job_id: str, idempotency_key: str | None
    ) -> None:
        self._runtime = runtime
        self._caller = caller
        self._wanted = wanted
        self._idempotency_key = idempotency_key
        self._cutter = Cutter(runtime.settings, wanted)
        self._created = False
        self._inputs = 0
        self._ringing: asyncio.Task[None] | None = None
        self.job_id = job_id

    async def add(self, lines: Lines) -> None:
        """Take lines in; writes a shard whenever one is full. Raises StorageUnavailable."""
        async for cut in self._cutter.feed(lines):
            async with self._runtime.database.write() as connection:
                await self._insert(connection, cut)
            await self._ring()

    async def finish(self, fingerprint: bytes) -> None:
        """The corpus is whole: make it durable. Raises InvalidInput when no line of it was usable."""
        cut = await self._cutter.rest()
        if not self._cutter.usable:
            first = next(iter(cut.lines.errors.values()), None)
            reason = f": {first.message}" if first else ""
            raise InvalidInput(f"the corpus has no usable input{reason}", param="input", code="no_usable_input")
        async with self._runtime.database.write() as connection:
            await self._insert(connection, cut)
            done = (
                await connection.execute(
                    update(Job)
                    .where(Job.id == self.job_id)
                    .values(
                        total=Job.ingested,
                        intake_until=None,
                        version=Job.version + 1,
                        # The last shard may have ended before the last byte arrived.
                        status=case(
                            ((Job.open_shards == 0) & Job.status.in_(UNDER_WAY), FINAL_STATUS),
                            else_=Job.status,
                        ),
                        finished_at=case(
                            ((Job.open_shards == 0) & Job.status.in_(UNDER_WAY), db_now()),
                            else_=Job.finished_at,
                        ),
                    )
                )
            ).rowcount
            if not done:
                raise Conflict("the job was deleted while its corpus arrived")
            if self._idempotency_key is not None:
                mine = await connection.execute(
                    update(IdempotencyKey)
                    .where(self._my_key())
                    .values(
                        fingerprint=fingerprint,
                        expires_at=db_now() + self._runtime.settings.idempotency_hours * 3600.0,
                    )
                )
                if not mine.rowcount:
                    raise Conflict("this request took so long that another with its Idempotency-Key went first")
        failpoints.hit("after_accept_commit")
        log.info(
            "job accepted", extra={"job_id": self.job_id, "inputs": self._inputs, "model": self._wanted.alias.name}
        )
        await self._ring()

    async def abandon(self, code: str, message: str) -> None:
        """The corpus will not arrive whole: forget the job, or fail it where a part of it has run already."""
        try:
            async with self._runtime.database.write() as connection:
                if self._idempotency_key is not None:
                    await connection.execute(delete(IdempotencyKey).where(self._my_key()))
            if self._created:
                await end_early(self._runtime, self.job_id, JobStatus.FAILED, code, message)
                if not self._cutter.usable:
                    await forget(self._runtime, self.job_id)
        except StorageUnavailable:
            log.warning("an abandoned intake is left to the sweep", extra={"job_id": self.job_id})

    async def keep_alive(self) -> None:
        """Renew the intake's lease for as long as the corpus takes to arrive."""
        settings = self._runtime.settings
        while True:
            await asyncio.sleep(settings.heartbeat_s)
            try:
                async with self._runtime.database.write() as connection:
                    until = db_now() + settings.lease_s
                    # Once the corpus is whole there is no lease to renew: a last beat must not bring it back.
                    await connection.execute(
                        update(Job)
                        .where(Job.id == self.job_id, Job.intake_until.is_not(None))
                        .values(intake_until=until)
                    )
                    if self._idempotency_key is not None:
                        arriving = and_(self._my_key(), IdempotencyKey.fingerprint.is_(None))
                        await connection.execute(update(IdempotencyKey).where(arriving).values(expires_at=until))
            except StorageUnavailable:
                log.warning("the lease of an intake could not be renewed", extra={"job_id": self.job_id})

    def _my_key(self) -> ColumnElement[bool]:
        # By the job too: whoever was frozen past its lease has lost the key to another request.
        return and_(
            IdempotencyKey.project == self._caller.project,
            IdempotencyKey.key == self._idempotency_key,
            IdempotencyKey.job_id == self.job_id,
        )

    async def _ring(self) -> None:
        """Ring what waits, unless the broker is still taking its time over the last ring."""
        if self._ringing is not None and not self._ringing.done():
            return
        self._ringing = await ring_soon(self._runtime)

    async def _insert(self, connection: AsyncConnection, cut: Cut) -> None:
        """Write a shard, and the job itself before its first."""
        if not self._created:
            await connection.execute(insert(Job).values(self._first_row()))
        elif not await self._still_there(connection):
            raise Conflict("the job was deleted while its corpus arrived")
        if len(cut):
            await self._insert_shard(connection, cut)
        failpoints.hit("after_job_insert")
        self._created = True
        self._inputs += len(cut)

    async def _still_there(self, connection: AsyncConnection) -> bool:
        there = select(Job.id).where(Job.id == self.job_id, Job.deleted_at.is_(None))
        return (await connection.execute(there.with_for_update(read=True, key_share=True))).first() is not None

    async def _insert_shard(self, connection: AsyncConnection, cut: Cut) -> None:
        shard_id, lines, count = new_id("shard"), cut.lines, len(cut)
        settled = np.zeros(count, dtype=bool)
        settled[list(lines.errors)] = True
        is_open = not settled.all()
        await connection.execute(
            insert(Shard).values(
                id=shard_id,
                job_id=self.job_id,
                seq=cut.seq,
                first_index=cut.first_index,
                count=count,
                tokens=cut.tokens,
                state=ShardState.QUEUED if is_open else ShardState.DONE,
                attempt=0,
                fence=0,
                next_run_at=db_now(),
                settled=np.packbits(settled).tobytes(),
            )
        )
        ids = _PACK.encode(lines.ids) if any(caller_id is not None for caller_id in lines.ids) else None
        await connection.execute(
            insert(ShardInputs).values(
                shard_id=shard_id, inputs=_PACK.encode(lines.inputs), ids=ids, twins=twins.packed(cut.twins)
            )
        )
        values: dict[str, Any] = {
            "ingested": Job.ingested + count,
            "open_shards": Job.open_shards + int(is_open),
            "failed": Job.failed + len(lines.errors),
            "intake_until": db_now() + self._runtime.settings.lease_s,
            "version": Job.version + 1,
            "status": case((Job.status == JobStatus.VALIDATING, JobStatus.IN_PROGRESS), else_=Job.status),
        }
        if lines.errors:
            failures = {cut.first_index + position: error for position, error in lines.errors.items()}
            await connection.execute(
                insert(InputFailure),
                [
                    {"job_id": self.job_id, "index": i, "code": e.code, "message": e.message, "retryable": e.retryable}
                    for i, e in failures.items()
                ],
            )
            values["error_summary"] = await merge_errors(connection, self.job_id, failures)
        await connection.execute(update(Job).where(Job.id == self.job_id).values(values))

    def _first_row(self) -> dict[str, Any]:
        wanted, settings = self._wanted, self._runtime.settings
        return {
            "id": self.job_id,
            "project": self._caller.project,
            "key_id": self._caller.key_id,
            "status": JobStatus.VALIDATING,
            "alias": wanted.alias.name,
            "space": wanted.alias.space,
            "dimensions": wanted.width,
            "options": {
                "input_type": wanted.options.input_type,
                "truncate": wanted.options.truncate,
                "user": wanted.options.user,
                "provider_options": wanted.options.provider_options,
            },
            "labels": wanted.labels,
            "max_cost_usd": wanted.max_cost_usd,
            "request_id": wanted.request_id,
            "ingested": 0,
            "completed": 0,
            "failed": 0,
            "open_shards": 0,
            "prompt_tokens": 0,
            "cost_usd": Decimal(0),
            "usage_estimated": False,
            "error_summary": [],
            "served_tokens": newcomer(self._caller.project),
            "created_at": db_now(),
            "expires_at": db_now() + settings.job_retention_days * 86400.0,
            "intake_until": db_now() + settings.lease_s,
            "mark_done": 0,
            "mark_tokens": 0,
            "earlier_mark_done": 0,
            "earlier_mark_tokens": 0,
            "version": 1,
        }


@asynccontextmanager
async def receiving(
    runtime: Runtime, caller: Caller, wanted: Wanted, job_id: str | None, idempotency_key: str | None
) -> AsyncIterator[Intake]:
    """An Intake that is kept alive inside the block, and abandoned when the block raises or is cancelled."""
    intake = Intake(runtime, caller, wanted, job_id or new_id("job"), idempotency_key)
    alive = asyncio.create_task(intake.keep_alive())
    try:
        yield intake
    except BaseException as error:
        code, message = ("upload_interrupted", "the corpus did not arrive whole")
        if isinstance(error, EmbedmillError):
            code, message = error.code, error.message
        await asyncio.shield(intake.abandon(code, message))
        raise
    finally:
        alive.cancel()


__all__ = ["Intake", "Replay", "Wanted", "receiving", "reserve"]
