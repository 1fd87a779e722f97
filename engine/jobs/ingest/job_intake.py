"""Submit: a corpus becomes a job and its shards, while it arrives.

A small corpus is one transaction: no answer before it, nothing of the job without it. A large one is written shard by
shard, and its first shards run while its last lines are still under way. `intake_owner` is the request that brings it,
and `intake_until` its lease. Only the owner adds to the job: one that was frozen and replaced writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, and_, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.access.keys import Caller
from engine.corpus.lines import ParsedRecords
from engine.jobs.control.end_early import end_early, forget
from engine.jobs.ingest.differences import stored_options, what_differs
from engine.jobs.ingest.idempotency import ARRIVING, Replay, Reservation, new_reservation, owned_by, reserve
from engine.jobs.ingest.sharding import JobSpec, Prefix, Sharder
from engine.jobs.leasing import duplicate_codec
from engine.jobs.recording import refused_ranges, truncated
from engine.jobs.recording.completion import FINAL_STATUS, NOTHING_OPEN, end_columns
from engine.jobs.recording.split_shard import HALVES_FROM
from engine.jobs.scheduling.dispatch import dispatch_soon
from engine.jobs.scheduling.fair_share import newcomer
from engine.jobs.shard_draft import ShardDraft
from engine.observability import failpoints
from engine.process.byte_budget import ByteLease
from engine.routing.ignored_options import ignored_options
from engine.runtime import Runtime
from models.base import db_now, new_id
from models.errors import (
    Conflict,
    EmbedmillError,
    IdempotencyMismatch,
    InvalidInput,
    RequestError,
    StorageUnavailable,
    UploadInterrupted,
)
from models.job import (
    UNDER_WAY,
    IdempotencyKey,
    Job,
    JobStatus,
    RefusedInputs,
    Shard,
    ShardInputs,
    ShardState,
    TruncatedInputs,
)

log = logging.getLogger("embedmill.jobs")
# So few bytes are parsed where they are: a thread costs more.
INLINE_BYTES = 4096


class JobIntake:
    """A job on its way in. Use through `receiving()`; feed lines, then finish."""

    def __init__(
        self, runtime: Runtime, caller: Caller, wanted: JobSpec, reservation: Reservation, held: ByteLease
    ) -> None:
        self._runtime = runtime
        self._caller = caller
        self._wanted = wanted
        self._reservation = reservation
        self._held = held
        self._cutter = Sharder(runtime.settings, wanted)
        self._created = False
        self._inputs = 0
        self._ringing: asyncio.Task[None] | None = None
        self.job_id = reservation.job_id

    async def resume(self) -> None:
        """Go on with what is stored of the job. Raises IdempotencyMismatch when it was asked for in another way."""
        first_shards = select(func.count()).where(Shard.job_id == Job.id, Shard.seq < HALVES_FROM).scalar_subquery()
        async with self._runtime.database.read() as connection:
            row = (
                await connection.execute(
                    select(*Job.__table__.columns, first_shards.label("shards")).where(Job.id == self.job_id)
                )
            ).one()
        wanted = self._first_row()
        for name in ("alias", "space", "dimensions", "options", "max_cost_usd"):
            if getattr(row, name) != wanted[name]:
                raise IdempotencyMismatch(
                    "An upload under this Idempotency-Key was cut off, and had other options: "
                    f"{await what_differs(self._runtime, self.job_id, self._wanted)}. "
                    "Send the same request again, or use a new key.",
                    param="idempotency-key",
                )
        self._created = True
        self._inputs = row.ingested
        self._cutter = Sharder(
            self._runtime.settings,
            self._wanted,
            Prefix(row.ingested, row.shards, bytes(row.intake_hash), row.intake_refused),
        )
        log.info("an upload is taken up again", extra={"job_id": self.job_id, "inputs": row.ingested})

    async def add(self, lines: ParsedRecords) -> None:
        """Take lines in; writes a shard whenever one is full. Raises StorageUnavailable."""
        await self.read(iter([lines]))

    async def read(self, pieces: Iterator[ParsedRecords], *, size: int | None = None, held_bytes: int = 0) -> None:
        """The same for lines that are parsed on the way, in the work threads unless they are few bytes.

        `held_bytes` is what the parser keeps of a line that has not ended.
        """

        def steps() -> Iterator[list[ShardDraft]]:
            for lines in pieces:
                yield list(self._cutter.feed(lines))

        if size is not None and size <= INLINE_BYTES:
            for cuts in steps():
                await self._write(cuts)
        else:
            async for cuts in self._runtime.work.drive(self._caller.project, steps()):
                await self._write(cuts)
        if not self._held.try_resize(self._cutter.held_bytes + held_bytes):
            await self._write([self._cutter.rest()])  # rather a small shard than a wait in the middle of an upload
            await self._held.resize(held_bytes)

    async def _write(self, cuts: list[ShardDraft]) -> None:
        for cut in cuts:
            if not len(cut):
                continue
            async with self._runtime.database.write() as connection:
                await self._insert(connection, cut)
            if cut.refused < len(cut):
                await self._ring()

    async def finish(self, fingerprint: bytes) -> None:
        """The corpus is whole: make it durable. Raises InvalidInput when no line of it was usable."""
        cut = await self._runtime.work.run(self._caller.project, self._cutter.end)
        if not self._cutter.usable:
            first = next(iter(cut.lines.errors.values()), None)
            reason = f": {first.message}" if first else ""
            raise InvalidInput(
                f"The corpus has no usable input{reason}. Correct it, and send it again.",
                param="input",
                code="no_usable_input",
            )
        async with self._runtime.database.write() as connection:
            await self._insert(connection, cut)
            is_through = NOTHING_OPEN & Job.status.in_(UNDER_WAY)
            done = await connection.execute(
                update(Job)
                .where(self._my_job())
                .values(
                    total=Job.ingested,
                    intake_until=None,
                    intake_owner=None,
                    version=Job.version + 1,
                    # The last shard may have ended before the last byte arrived.
                    status=case((is_through, FINAL_STATUS), else_=Job.status),
                    **{
                        name: case((is_through, value), else_=Job.__table__.c[name])
                        for name, value in end_columns(self._runtime.settings).items()
                    },
                )
            )
            if not done.rowcount:
                raise await self._why_not_mine(connection)
            if self._reservation.key is not None:
                mine = await connection.execute(
                    update(IdempotencyKey)
                    .where(owned_by(self._reservation, self._caller.project))
                    .values(
                        fingerprint=fingerprint,
                        owner=None,
                        owner_until=None,
                        expires_at=db_now() + self._runtime.settings.idempotency_hours * 3600.0,
                    )
                )
                if not mine.rowcount:
                    raise _taken_over()
        failpoints.hit("after_accept_commit")
        log.info(
            "job accepted", extra={"job_id": self.job_id, "inputs": self._inputs, "model": self._wanted.alias.name}
        )
        await self._ring()

    async def abandon(self, error: BaseException) -> None:
        """The corpus does not arrive whole. What was sent wrong ends the job; what broke off under a key stays open."""
        project = self._caller.project
        broke_off = not isinstance(error, RequestError) or error.retryable or isinstance(error, IdempotencyMismatch)
        try:
            if self._reservation.key is not None:
                async with self._runtime.database.write() as connection:
                    if self._created and broke_off:
                        await connection.execute(
                            update(Job)
                            .where(self._my_job())
                            .values(intake_owner=None, intake_until=db_now(), version=Job.version + 1)
                        )
                        await connection.execute(
                            update(IdempotencyKey)
                            .where(owned_by(self._reservation, project))
                            .values(owner=None, owner_until=None)
                        )
                        log.warning("an upload broke off, and may be taken up again", extra={"job_id": self.job_id})
                        return
                    await connection.execute(delete(IdempotencyKey).where(owned_by(self._reservation, project)))
            if self._created and await self._is_mine():
                code, message = "upload_interrupted", "the corpus did not arrive whole: send it again"
                if isinstance(error, EmbedmillError):
                    code, message = error.code, error.message
                await end_early(self._runtime, self.job_id, JobStatus.FAILED, code, message)
                if not self._cutter.usable:
                    await forget(self._runtime, self.job_id)
        except StorageUnavailable:
            log.warning("an abandoned intake is left to the sweep", extra={"job_id": self.job_id})

    def _my_job(self) -> ColumnElement[bool]:
        return and_(Job.id == self.job_id, Job.intake_owner == self._reservation.owner, ARRIVING)

    async def _is_mine(self) -> bool:
        async with self._runtime.database.read() as connection:
            found = await connection.execute(
                select(Job.id).where(Job.id == self.job_id, Job.intake_owner == self._reservation.owner)
            )
            return found.first() is not None

    async def _why_not_mine(self, connection: AsyncConnection) -> EmbedmillError:
        """Why this request may not add to its job any more."""
        row = (
            await connection.execute(select(Job.status, Job.deleted_at, Job.intake_owner).where(Job.id == self.job_id))
        ).one_or_none()
        if row is None or row.deleted_at is not None:
            return Conflict("The job was deleted while its corpus arrived: send the corpus again for a new one.")
        if row.status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
            return Conflict("The job was cancelled while its corpus arrived: send the corpus again for a new one.")
        if row.status in (JobStatus.FAILED, JobStatus.EXPIRED):
            return UploadInterrupted(
                "The server stood still while the corpus arrived, and its job was given up: send the corpus again.",
                retry_after_s=1.0,
            )
        return _taken_over()

    async def _ring(self) -> None:
        """Ring what waits, unless the broker is still taking its time over the last ring."""
        if self._ringing is not None and not self._ringing.done():
            return
        self._ringing = await dispatch_soon(self._runtime)

    async def _insert(self, connection: AsyncConnection, cut: ShardDraft) -> None:
        """Write a shard, and the job itself before its first."""
        if not self._created:
            await connection.execute(insert(Job).values(self._first_row()))
        else:
            mine = select(Job.id).where(self._my_job()).with_for_update(read=True, key_share=True)
            if (await connection.execute(mine)).first() is None:
                raise await self._why_not_mine(connection)
        if len(cut):
            await self._insert_shard(connection, cut)
        failpoints.hit("after_job_insert")
        self._created = True
        self._inputs += len(cut)

    async def _insert_shard(self, connection: AsyncConnection, cut: ShardDraft) -> None:
        shard_id, count = new_id("shard"), len(cut)
        settled = np.full(count, cut.repeated is not None)
        settled[list(cut.lines.errors)] = True
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
        await connection.execute(
            insert(ShardInputs).values(
                shard_id=shard_id, inputs=cut.packed_inputs, ids=cut.packed_ids, twins=duplicate_codec.packed(cut.twins)
            )
        )
        if cut.truncated:
            indexes = [cut.first_index + position for position in cut.truncated]
            await connection.execute(insert(TruncatedInputs).values(truncated.row_of(self.job_id, indexes)))
        values: dict[str, Any] = {
            "ingested": Job.ingested + count,
            "open_shards": Job.open_shards + int(is_open),
            "failed": Job.failed + cut.refused,
            "intake_until": db_now() + self._runtime.settings.lease_s,
            "intake_hash": cut.prefix_hash,
            "intake_refused": Job.intake_refused + cut.refused,
            "version": Job.version + 1,
            "status": case((Job.status == JobStatus.VALIDATING, JobStatus.IN_PROGRESS), else_=Job.status),
        }
        if refused := refused_ranges.rows_of(self.job_id, cut):
            await connection.execute(insert(RefusedInputs), refused)
            known = select(Job.error_summary).where(Job.id == self.job_id).with_for_update(key_share=True)
            values["error_summary"] = refused_ranges.tally(
                (await connection.execute(known)).scalar_one_or_none() or [], refused
            )
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
            "options": stored_options(wanted),
            "labels": wanted.labels,
            "warnings": [
                {"code": "unsupported_parameter", "message": f"'{where}': {why}"}
                for where, why in ignored_options(wanted.options, wanted.alias.routes)
            ],
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
            "expires_at": db_now() + settings.job_deadline_days * 86400.0,
            "intake_until": db_now() + settings.lease_s,
            "intake_owner": self._reservation.owner,
            "intake_refused": 0,
            "mark_done": 0,
            "mark_tokens": 0,
            "earlier_mark_done": 0,
            "earlier_mark_tokens": 0,
            "version": 1,
        }


def _taken_over() -> Conflict:
    return Conflict(
        "Another request with this Idempotency-Key has taken this upload over: read the answer of that one.",
        code="upload_taken_over",
        should_retry=True,
    )


@asynccontextmanager
async def receiving(
    runtime: Runtime, caller: Caller, wanted: JobSpec, reservation: Reservation | None = None
) -> AsyncIterator[JobIntake]:
    """An Intake that is kept alive inside the block, and abandoned when the block raises or is cancelled.

    Raises IdempotencyMismatch where an upload broke off that was another one.
    """
    mine = reservation or new_reservation()
    with runtime.bodies.lease(caller.project) as held:
        intake = JobIntake(runtime, caller, wanted, mine, held)
        runtime.upload_leases.keep(mine.owner)
        try:
            if mine.resumes:
                await intake.resume()
            yield intake
        except BaseException as error:
            await asyncio.shield(intake.abandon(error))
            raise
        finally:
            runtime.upload_leases.drop(mine.owner)


__all__ = ["JobIntake", "JobSpec", "Replay", "Reservation", "new_reservation", "receiving", "reserve"]
