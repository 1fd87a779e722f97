"""Job intake: stores a corpus as a job and its shards while it is uploaded.

A small corpus is stored in one transaction before the response. A large one is stored shard by shard, and its first
shards run while its last lines are still arriving. `upload_owner` is the uploading request, `upload_lease_until` its
lease. Only the owner may add to the job: a suspended request that was replaced writes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import ColumnElement, and_, case, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.access.keys import Caller
from engine.corpus.lines import ParsedRecords
from engine.job_store import JobStore
from engine.jobs.control.termination import soft_delete, terminate
from engine.jobs.ingest.idempotency import ARRIVING, IdempotentReplay, Reservation, new_reservation, owned_by, reserve
from engine.jobs.ingest.idempotency_mismatch import describe_differences
from engine.jobs.ingest.job_row import initial_columns
from engine.jobs.ingest.shard_rows import insert_shard, is_open
from engine.jobs.ingest.sharding import JobSpec, Prefix, Sharder
from engine.jobs.recording import refused_inputs
from engine.jobs.recording.completion import NO_OPEN_SHARD, end_columns, final_status_of
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.jobs.shard_draft import ShardDraft
from engine.observability import failpoints
from engine.process.memory_budget import ByteBudget, ByteLease
from engine.process.work_threads import WorkThreads
from engine.storage.upload_leases import UploadLeases
from engine.webhooks.endpoints import attach_requested
from engine.webhooks.job_events import record_job_event
from models.base import db_now
from models.errors import (
    Conflict,
    EmbedmillError,
    IdempotencyMismatch,
    InvalidInput,
    RequestError,
    StorageUnavailable,
    UploadInterrupted,
)
from models.job import ACTIVE_STATUSES, FINISHED, IdempotencyKey, Job, JobStatus

log = logging.getLogger("embedmill.jobs")
# Up to so many bytes are parsed on the event loop, because a thread costs more.
INLINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class IntakeParts:
    """What the uploads of a process share. `memory`: of request bodies."""

    store: JobStore
    dispatcher: Dispatcher
    work: WorkThreads
    memory: ByteBudget
    leases: UploadLeases


class JobIntake:
    """The upload of one job. Use `open_intake()`, add lines, then finish."""

    def __init__(
        self, parts: IntakeParts, caller: Caller, spec: JobSpec, reservation: Reservation, body_lease: ByteLease
    ) -> None:
        self._store = parts.store
        self._dispatcher = parts.dispatcher
        self._work = parts.work
        self._caller = caller
        self._spec = spec
        self._reservation = reservation
        self._body_lease = body_lease
        self._sharder = Sharder(parts.store.settings, spec)
        self._created = False
        self._inputs = 0
        self._dispatching: asyncio.Task[None] | None = None
        self.job_id = reservation.job_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Abandon the upload when the block raises, also when it is cancelled."""
        if error is not None:
            await asyncio.shield(self._abandon(error))

    async def resume(self) -> None:
        """Continue an interrupted upload. Raises IdempotencyMismatch when its options were different."""
        async with self._store.database.read() as connection:
            row = (await connection.execute(select(*Job.__table__.columns).where(Job.id == self.job_id))).one()
        spec = self._initial_columns()
        for name in ("alias", "space", "dimensions", "options", "max_cost_usd"):
            if getattr(row, name) != spec[name]:
                raise IdempotencyMismatch(
                    "An upload under this Idempotency-Key was cut off, and had other options: "
                    f"{await describe_differences(self._store.database, self.job_id, self._spec)}. "
                    "Send the same request again, or use a new key.",
                    param="idempotency-key",
                )
        self._created = True
        self._inputs = row.ingested
        self._sharder = Sharder(
            self._store.settings,
            self._spec,
            Prefix(row.ingested, bytes(row.upload_hash), row.upload_refused_inputs),
        )
        log.info("an upload is taken up again", extra={"job_id": self.job_id, "inputs": row.ingested})

    async def add(self, lines: ParsedRecords) -> None:
        """Add lines; each full shard is written. Raises StorageUnavailable."""
        await self.read(iter([lines]))

    async def read(self, chunks: Iterator[ParsedRecords], *, size: int | None = None, buffered_bytes: int = 0) -> None:
        """Add lines while the iterator parses them, in the work threads unless they are few bytes.

        `buffered_bytes`: bytes that the parser keeps of an incomplete line.
        """

        def steps() -> Iterator[list[ShardDraft]]:
            for lines in chunks:
                yield list(self._sharder.feed(lines))

        if size is not None and size <= INLINE_BYTES:
            for drafts in steps():
                await self._write(drafts)
        else:
            async for drafts in self._work.drive(self._caller.project, steps()):
                await self._write(drafts)
        if not self._body_lease.try_resize(self._sharder.buffered_bytes + buffered_bytes):
            await self._write([self._sharder.flush()])  # a small shard, so that the upload need not wait for memory
            await self._body_lease.resize(buffered_bytes)

    async def _write(self, drafts: list[ShardDraft]) -> None:
        for draft in drafts:
            if not len(draft):
                continue
            async with self._store.database.write() as connection:
                await self._insert(connection, draft)
            if draft.refused < len(draft):
                await self._dispatch()

    async def finish(self, fingerprint: bytes) -> None:
        """Complete the corpus and make it durable. Raises InvalidInput without an accepted line; StorageUnavailable."""
        draft = await self._work.run(self._caller.project, self._sharder.end)
        if not self._sharder.accepted:
            first = next(iter(draft.lines.errors.values()), None)
            reason = f": {first.message}" if first else ""
            raise InvalidInput(
                f"The corpus has no usable input{reason}. Correct it, and send it again.",
                param="input",
                code="no_usable_input",
            )
        async with self._store.database.write() as connection:
            await self._insert(connection, draft, is_last=True)
            if self._reservation.key is not None:
                owned = await connection.execute(
                    update(IdempotencyKey)
                    .where(owned_by(self._reservation, self._caller.project))
                    .values(
                        fingerprint=fingerprint,
                        owner=None,
                        owner_until=None,
                        expires_at=db_now() + self._store.settings.idempotency_hours * 3600.0,
                    )
                )
                if not owned.rowcount:
                    raise _taken_over_conflict()
        failpoints.hit("after_accept_commit")
        log.info("job accepted", extra={"job_id": self.job_id, "inputs": self._inputs, "model": self._spec.alias.name})
        await self._dispatch()

    async def _abandon(self, error: BaseException) -> None:
        """The upload was not completed. An invalid one ends the job; an interrupted one with a key stays open."""
        project = self._caller.project
        broke_off = not isinstance(error, RequestError) or error.retryable or isinstance(error, IdempotencyMismatch)
        try:
            if self._reservation.key is not None:
                async with self._store.database.write() as connection:
                    if self._created and broke_off:
                        await connection.execute(
                            update(Job)
                            .where(self._owned_job())
                            .values(upload_owner=None, upload_lease_until=db_now(), version=Job.version + 1)
                        )
                        await connection.execute(
                            update(IdempotencyKey)
                            .where(owned_by(self._reservation, project))
                            .values(owner=None, owner_until=None)
                        )
                        log.warning("an upload broke off, and may be taken up again", extra={"job_id": self.job_id})
                        return
                    await connection.execute(delete(IdempotencyKey).where(owned_by(self._reservation, project)))
            if self._created and await self._owns_job():
                code, message = "upload_interrupted", "the corpus did not arrive whole: send it again"
                if isinstance(error, EmbedmillError):
                    code, message = error.code, error.message
                await terminate(self._store, self.job_id, JobStatus.FAILED, code, message)
                if not self._sharder.accepted:
                    await soft_delete(self._store, self.job_id)
                elif isinstance(error, EmbedmillError):
                    error.message += f" (what had arrived is the job {self.job_id}, which has failed for this)"
        except StorageUnavailable:
            log.warning("an abandoned intake is left to the sweep", extra={"job_id": self.job_id})

    def _owned_job(self) -> ColumnElement[bool]:
        return and_(Job.id == self.job_id, Job.upload_owner == self._reservation.owner, ARRIVING)

    async def _owns_job(self) -> bool:
        async with self._store.database.read() as connection:
            found = await connection.execute(
                select(Job.id).where(Job.id == self.job_id, Job.upload_owner == self._reservation.owner)
            )
            return found.first() is not None

    async def _ownership_error(self, connection: AsyncConnection) -> EmbedmillError:
        """The error for a request that no longer owns its job."""
        row = (
            await connection.execute(select(Job.status, Job.deleted_at, Job.upload_owner).where(Job.id == self.job_id))
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
        return _taken_over_conflict()

    async def _dispatch(self) -> None:
        """Dispatch due shards, unless the previous dispatch still waits for the broker."""
        if self._dispatching is not None and not self._dispatching.done():
            return
        self._dispatching = await self._dispatcher.dispatch_soon()

    async def _insert(self, connection: AsyncConnection, draft: ShardDraft, *, is_last: bool = False) -> None:
        """Insert a shard, and the job before its first shard. `is_last`: the corpus is complete."""
        if self._created:
            # At the end the row itself is locked, so that the last statement sees the shards that are done by then.
            owned = select(Job.id).where(self._owned_job()).with_for_update(read=not is_last, key_share=True)
            if (await connection.execute(owned)).first() is None:
                raise await self._ownership_error(connection)
        refused = refused_inputs.refused_rows(self.job_id, draft) if len(draft) else []
        changes = await self._changes(connection, draft, refused)
        if not self._created:
            # One statement with all that is known: most jobs have one shard.
            ended: dict[str, Any] = {"total": len(draft), "upload_lease_until": None, "upload_owner": None}
            initial = self._initial_columns() | changes | (ended if is_last else {})
            await connection.execute(insert(Job).values(initial))
            await attach_requested(connection, self._spec.webhook, project=self._caller.project, job_id=self.job_id)
        if len(draft):
            await insert_shard(connection, self.job_id, draft, refused)
        if self._created:
            if is_last:
                changes |= self._completion(changes)
            changed = await connection.execute(
                update(Job).where(self._owned_job()).values(changes).returning(Job.status)
            )
            status = changed.scalar_one_or_none()
            if status is None:
                raise await self._ownership_error(connection)
            if status in FINISHED:
                await record_job_event(connection, self.job_id)
        failpoints.hit("after_job_insert")
        self._created = True
        self._inputs += len(draft)

    async def _changes(
        self, connection: AsyncConnection, draft: ShardDraft, refused: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """The columns of the job that a shard changes; plain values for a job that is inserted with it."""
        counts = {
            "ingested": len(draft),
            "open_shards": int(is_open(draft)),
            "failed": draft.refused,
            "upload_refused_inputs": draft.refused,
        }
        columns = Job.__table__.c
        values: dict[str, Any] = {name: columns[name] + n if self._created else n for name, n in counts.items()}
        values["version"] = Job.version + 1 if self._created else 1
        if len(draft):
            values["upload_lease_until"] = db_now() + self._store.settings.lease_s
            values["upload_hash"] = draft.prefix_hash
        if refused:
            known: Sequence[dict[str, Any]] = []
            if self._created:
                summary = select(Job.error_summary).where(Job.id == self.job_id).with_for_update(key_share=True)
                known = (await connection.execute(summary)).scalar_one_or_none() or []
            values["error_summary"] = refused_inputs.add_to_summary(known, refused)
        return values

    def _completion(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The columns of a job whose corpus is complete. Its last shard may be done before the last byte arrives."""
        has_ended = and_(changes["open_shards"] < 1, NO_OPEN_SHARD, Job.status.in_(ACTIVE_STATUSES))
        ending = end_columns(self._store.settings) | {"status": final_status_of(Job.completed, changes["failed"])}
        return {
            "total": changes["ingested"],
            "upload_lease_until": None,
            "upload_owner": None,
            **{name: case((has_ended, value), else_=Job.__table__.c[name]) for name, value in ending.items()},
        }

    def _initial_columns(self) -> dict[str, Any]:
        of_upload = {
            "upload_lease_until": db_now() + self._store.settings.lease_s,
            "upload_owner": self._reservation.owner,
        }
        return initial_columns(self._store.settings, self._caller, self._spec, self.job_id) | of_upload


def _taken_over_conflict() -> Conflict:
    return Conflict(
        "Another request with this Idempotency-Key has taken this upload over: read the answer of that one.",
        code="upload_taken_over",
        should_retry=True,
    )


@asynccontextmanager
async def open_intake(
    parts: IntakeParts, caller: Caller, spec: JobSpec, reservation: Reservation | None = None
) -> AsyncIterator[JobIntake]:
    """A JobIntake whose lease is renewed within the block, and which is abandoned when the block raises.

    Raises IdempotencyMismatch when the interrupted upload was a different one.
    """
    owned = reservation or new_reservation()
    with parts.memory.lease(caller.project) as body_lease:
        intake = JobIntake(parts, caller, spec, owned, body_lease)
        parts.leases.keep(owned.owner)
        try:
            async with intake:
                if owned.resumes:
                    await intake.resume()
                yield intake
        finally:
            parts.leases.drop(owned.owner)


__all__ = ["IdempotentReplay", "JobIntake", "JobSpec", "Reservation", "new_reservation", "open_intake", "reserve"]
