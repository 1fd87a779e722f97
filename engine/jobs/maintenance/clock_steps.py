"""Clock steps: leases, due times and heartbeats are instants of the database's clock, which an operator may set.

A forward step lets live workers look dead, so their leases are extended by the time of a heartbeat. The same happens
after a time without heartbeats: the database was unavailable, or this machine was suspended. A backward step moves due
times into the future, so every instant is clamped to the latest value that it could be given now.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import WORKER_SEEN_S
from engine.job_store import JobStore
from engine.jobs.reading.read_leases import READ_LEASE_S
from engine.jobs.row_locks import MAX_LOCKED_ROWS, lock_jobs, lock_shards
from engine.process.clock import DatabaseClock
from engine.storage.database import Database
from models.base import db_now
from models.batch import JobStep
from models.drift import DriftCheck
from models.file import FilePart
from models.job import ACTIVE_STATUSES, OPEN_STATES, IdempotencyKey, Job, JobStatus, Shard, ShardState
from models.outage import RouteOutage
from models.webhook import DeliveryState, WebhookDelivery
from models.worker import WorkerProcess

log = logging.getLogger("embedmill.sweep")

# After such a gap between two sweeps, heartbeats may have been impossible meanwhile.
GAP_S = 10.0


async def watch_clock(store: JobStore, clock: DatabaseClock) -> None:
    """Compare the database's clock with this machine's, and correct instants after a step or a gap."""
    requested_at = clock.machine()
    async with store.database.read() as connection:
        now = float((await connection.execute(select(db_now()))).scalar_one())
    observed = clock.observe(now, requested_at)
    if observed.step_s:
        log.warning("the clock of the database was set", extra={"seconds": round(observed.step_s, 1)})
        await reset_rates(store.database)
    is_gap = observed.gap_s > GAP_S + 2 * store.settings.sweep_s
    if observed.step_s < 0:
        await clamp_future_instants(store)
    elif observed.step_s > 0 or (is_gap and _may_extend_leases(store, clock)):
        await extend_leases_after_outage(store, clock, unseen_s=max(observed.step_s, observed.gap_s))


def _may_extend_leases(store: JobStore, clock: DatabaseClock) -> bool:
    """False less than a lease after the last extension: a sweep that is always slow would keep dead workers' leases."""
    spared_at = clock.spared_at
    return spared_at is None or clock.machine() - spared_at > store.settings.lease_s


async def extend_leases_after_outage(store: JobStore, clock: DatabaseClock, *, unseen_s: float = 0.0) -> None:
    """Extend the leases of steps, shards, uploads, parts of files and keys after `unseen_s` without heartbeats.

    Workers count as alive too: nobody could renew a lease in that time, and they still hold paid results.
    Raises StorageUnavailable.
    """
    settings = store.settings
    clock.spared_at = clock.machine()
    # A missed heartbeat comes one full interval later, and may be in transit now.
    until = db_now() + 1.5 * settings.heartbeat_s
    async with store.database.write() as connection:
        await _set_steps(connection, JobStep.lease_until < until, {"lease_until": until})
        await connection.execute(
            update(FilePart).where(FilePart.owner_id.is_(None), FilePart.lease_until < until).values(lease_until=until)
        )
        extended = await lock_shards(connection, Shard.state == ShardState.RUNNING, Shard.lease_until < until)
        await connection.execute(update(Shard).where(Shard.id.in_(extended)).values(lease_until=until))
        uploads = await lock_jobs(connection, Job.upload_lease_until < until)
        await connection.execute(update(Job).where(Job.id.in_(uploads)).values(upload_lease_until=until))
        await connection.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.fingerprint.is_(None), IdempotencyKey.expires_at < until)
            .values(expires_at=until)
        )
        await connection.execute(
            update(WorkerProcess)
            .where(WorkerProcess.seen_at > db_now() - unseen_s - WORKER_SEEN_S)
            .values(seen_at=db_now())
        )
    if extended or uploads:
        extra = {"count": len(extended), "uploads": len(uploads)}
        log.info("leases were spared after a time in which nobody could renew them", extra=extra)


async def clamp_future_instants(store: JobStore, *, due_within_s: float = 0.0) -> None:
    """Clamp every instant to the latest value that it could be given now, and make what waits due.

    `due_within_s`: the longest remaining wait of an open shard or step. Raises StorageUnavailable.
    """
    settings = store.settings
    lease_end = db_now() + settings.lease_s
    for where, values in (
        (and_(Shard.state == ShardState.RUNNING, Shard.lease_until > lease_end), {"lease_until": lease_end}),
        # Running shards too: they are queued again after a lost lease.
        (
            and_(Shard.state.in_(OPEN_STATES), Shard.next_run_at > db_now() + due_within_s),
            {"next_run_at": db_now() + due_within_s},
        ),
    ):
        await _set_shards(store.database, where, values)
    read_end = db_now() + READ_LEASE_S
    for which, columns in (
        (Job.not_before.is_not(None), {"not_before": None}),
        (Job.upload_lease_until > lease_end, {"upload_lease_until": lease_end}),
        (and_(Job.status == JobStatus.IN_PROGRESS, Job.next_attempt_at > db_now()), {"next_attempt_at": None}),
        (Job.read_until > read_end, {"read_until": read_end}),
    ):
        await _set_jobs(store.database, which, columns)
    in_flight = and_(IdempotencyKey.fingerprint.is_(None), IdempotencyKey.expires_at > lease_end)
    async with store.database.write() as connection:
        await connection.execute(update(IdempotencyKey).where(in_flight).values(expires_at=lease_end))
        await connection.execute(update(WorkerProcess).where(WorkerProcess.seen_at > db_now()).values(seen_at=db_now()))
        await connection.execute(update(DriftCheck).where(DriftCheck.checked_at > db_now()).values(checked_at=db_now()))
        probe_due = RouteOutage.next_attempt_at > db_now()
        await connection.execute(update(RouteOutage).where(probe_due).values(next_attempt_at=db_now()))
    due_end = db_now() + due_within_s
    async with store.database.write() as connection:
        await _set_steps(connection, JobStep.lease_until > lease_end, {"lease_until": lease_end})
        await _set_steps(connection, JobStep.due_at > due_end, {"due_at": due_end})
        await connection.execute(
            update(FilePart)
            .where(FilePart.owner_id.is_(None), FilePart.lease_until > lease_end)
            .values(lease_until=lease_end)
        )
    await _clamp_deliveries(store)


async def _clamp_deliveries(store: JobStore) -> None:
    """Deliveries of webhooks whose last attempt lies in the future, or that had none, are due now."""
    is_pending = WebhookDelivery.state == DeliveryState.PENDING.value
    lease_end = db_now() + store.settings.webhook_timeout_s + store.settings.lease_s
    is_early = or_(WebhookDelivery.attempts == 0, WebhookDelivery.last_attempt_at > db_now())
    async with store.database.write() as connection:
        await connection.execute(
            update(WebhookDelivery)
            .where(is_pending, WebhookDelivery.lease_until > lease_end)
            .values(lease_until=lease_end)
        )
        await connection.execute(
            update(WebhookDelivery)
            .where(is_pending, WebhookDelivery.next_attempt_at > db_now(), is_early)
            .values(next_attempt_at=db_now())
        )


async def reset_rates(database: Database) -> None:
    """Drop the rate samples, which are differences of instants. Rates start again with the next results."""
    marked = and_(
        Job.status.in_(ACTIVE_STATUSES), or_(Job.rate_sample_at.is_not(None), Job.prev_rate_sample_at.is_not(None))
    )
    await _set_jobs(database, marked, {"rate_sample_at": None, "prev_rate_sample_at": None})


async def _set_steps(connection: AsyncConnection, where: ColumnElement[bool], values: dict[str, Any]) -> None:
    """Locked in one order: several sweeps may run, and a worker locks the step of each of its transactions."""
    locked = select(JobStep.job_id).where(where).order_by(JobStep.job_id).with_for_update()
    ids = list((await connection.execute(locked)).scalars())
    await connection.execute(update(JobStep).where(JobStep.job_id.in_(ids)).values(values))


async def _set_shards(database: Database, where: ColumnElement[bool], values: dict[str, Any]) -> None:
    last, more = "", True
    while more:
        async with database.write() as connection:
            ids = await lock_shards(connection, where, Shard.id > last)
            await connection.execute(update(Shard).where(Shard.id.in_(ids)).values(values))
        more = len(ids) == MAX_LOCKED_ROWS
        last = ids[-1] if ids else ""


async def _set_jobs(database: Database, where: ColumnElement[bool], values: dict[str, Any]) -> None:
    last, more = "", True
    while more:
        async with database.write() as connection:
            ids = await lock_jobs(connection, where, Job.id > last)
            await connection.execute(update(Job).where(Job.id.in_(ids)).values(values))
        more = len(ids) == MAX_LOCKED_ROWS
        last = ids[-1] if ids else ""
