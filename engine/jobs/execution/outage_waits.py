"""Waits for providers: a shard that meets an outage is released without counting the attempt; its job shows the outage.

Inputs fail only when an outage has kept their job from any progress for EMBEDMILL_UPSTREAM_OUTAGE_HOURS.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.secrets import SecretFiles
from engine.job_store import JobStore
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record_outcomes import fail_remaining
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.routing.outage_causes import Cause, cause_of
from engine.routing.outages import Outage, Outages, new_outage
from engine.routing.router import Router
from models.base import db_now
from models.embedding import Alias
from models.errors import (
    EmbedmillError,
    NoRoute,
    RouteQuarantined,
    UnknownAlias,
    UpstreamError,
    UpstreamRateLimited,
)
from models.job import Job, JobStatus, Shard, ShardState
from models.outage import RouteOutage

log = logging.getLogger("embedmill.jobs")

# With more waiting jobs than this, most return a little later than the next probe, which one of them makes.
FEW_JOBS = 20
MANY_JOBS_SPREAD_S = 8.0
# Pause of inputs that get a 429 while others do not.
OWN_PAUSE_S = 20.0
JOBS_PER_QUERY = 500


class ProviderOutage(EmbedmillError):
    """The error of inputs whose provider was unavailable for EMBEDMILL_UPSTREAM_OUTAGE_HOURS."""

    retryable = True


def outage_of(router: Router, alias: Alias | None, shard: ClaimedShard, error: EmbedmillError | None) -> Outage | None:
    """The outage that stopped the shard, or None where it was stopped by something else."""
    if isinstance(error, UnknownAlias):
        return new_outage(_unknown_alias(shard.alias))
    if not isinstance(error, UpstreamError | NoRoute) or isinstance(error, RouteQuarantined):
        return None
    return None if alias is None else router.outage_of(alias)


async def wait_for_provider(store: JobStore, shard: ClaimedShard, outage: Outage) -> None:
    """Release the shard until the next health probe; after too long a wait, fail its open inputs."""
    async with store.database.read() as connection:
        now, waits_since = await _waits_since(connection, shard)
        waiting_jobs = (
            select(Job.id)
            .where(Job.not_before.is_not(None), Job.waiting_on == "provider")
            .limit(FEW_JOBS + 1)
            .subquery()
        )
        count = (await connection.execute(select(func.count()).select_from(waiting_jobs))).scalar_one()
    if now - waits_since > store.settings.upstream_outage_hours * 3600:
        log.warning("an outage has lasted too long", extra={"job_id": shard.job_id, "shard_id": shard.shard_id})
        await fail_remaining(store, shard, ProviderOutage(outage.cause.sentence(), code=outage.cause.code))
        return
    spread_s = 0.5 if count <= FEW_JOBS else MANY_JOBS_SPREAD_S
    await claims.release(
        store,
        shard,
        delay_s=outage.next_attempt_in_s + random.uniform(0.05, spread_s),
        counts_as_attempt=False,
        reason=outage.cause.sentence(),
        waiting_on="provider",
        outage=outage.cause.waiting(outage.since) | {"waits_since": waits_since},
    )


async def wait_for_inputs(store: JobStore, shard: ClaimedShard, error: UpstreamRateLimited) -> None:
    """Release a shard whose open inputs alone get a 429 from the provider.

    Other shards of the job continue. The inputs fail after as long a wait as for an outage.
    """
    async with store.database.read() as connection:
        now, waits_since = await _waits_since(connection, shard)
    if now - waits_since > store.settings.upstream_outage_hours * 3600:
        log.warning("inputs were refused for too long", extra={"job_id": shard.job_id, "shard_id": shard.shard_id})
        await fail_remaining(store, shard, error)
        return
    delay_s = max(OWN_PAUSE_S, error.retry_after_s or 0.0)
    await claims.release(
        store,
        shard,
        delay_s=delay_s + random.uniform(0, delay_s / 10),
        counts_as_attempt=False,
        reason=error.message,
        waiting_on="provider",
        outage=cause_of(error.account, error).waiting(now) | {"waits_since": waits_since},
        blocks_job=False,
    )


async def _waits_since(connection: AsyncConnection, shard: ClaimedShard) -> tuple[float, float]:
    """The current instant, and the start of the job's wait for its provider without progress. Unix seconds."""
    found = await connection.execute(select(Job.outage, db_now().label("now")).where(Job.id == shard.job_id))
    row = found.one_or_none()
    if row is None:
        return time.time(), time.time()
    return row.now, (row.outage or {}).get("waits_since") or row.now


async def release(
    store: JobStore,
    alias: Alias | None,
    shard: ClaimedShard,
    error: EmbedmillError,
    *,
    delay_s: float,
    counts_as_attempt: bool,
) -> None:
    """Release the shard after an error that is no outage. The job shows an error of the provider."""
    outage: dict[str, Any] | None = None
    if isinstance(error, UpstreamError):
        outage = cause_of(error.account, error).waiting(time.time())
    elif isinstance(error, RouteQuarantined):
        advice = "See `embedmill doctor`; `embedmill doctor --release ACCOUNT` lets it serve again."
        account = alias.routes[0].provider if alias is not None else ""
        outage = Cause(account, error.code, error.message, advice).waiting(time.time())
    waiting_on = "provider" if outage is not None or error.retryable else None
    await claims.release(
        store,
        shard,
        delay_s=delay_s,
        counts_as_attempt=counts_as_attempt,
        reason=error.message,
        waiting_on=waiting_on,
        outage=outage,
    )


async def resume_recovered_jobs(store: JobStore) -> None:
    """Make the jobs due at once whose provider has recovered: its outage is no longer in the table."""
    async with store.database.read() as connection:
        down = set((await connection.execute(select(RouteOutage.account))).scalars())
        rows = (
            await connection.execute(select(Job.id, Job.outage).where(WAITING_FOR_PROVIDER).limit(JOBS_PER_QUERY))
        ).all()
    await _unblock(store, [row.id for row in rows if row.outage and row.outage.get("provider") not in ("", *down)])


async def try_changed_secrets(secrets: SecretFiles, outages: Outages, dispatcher: Dispatcher) -> None:
    """Read changed secret files, try their accounts again, and make the jobs due that wait for them.

    Raises StorageUnavailable; the next call repeats it then.
    """
    store = dispatcher.store
    await secrets.refresh()
    untried = secrets.take_changed()
    try:
        for account in tuple(untried):
            await outages.probe_now(account)
            async with store.database.read() as connection:
                rows = (
                    await connection.execute(
                        select(Job.id, Job.outage).where(WAITING_FOR_PROVIDER).limit(JOBS_PER_QUERY)
                    )
                ).all()
            await _unblock(store, [row.id for row in rows if row.outage and row.outage.get("provider") == account])
            await dispatcher.dispatch()
            untried.discard(account)
    finally:
        for account in untried:  # one of them has failed
            secrets.note_changed(account)


async def _unblock(store: JobStore, job_ids: list[str]) -> None:
    if not job_ids:
        return
    async with store.database.write() as connection:
        due = await lock_shards(
            connection,
            Shard.job_id.in_(job_ids),
            Shard.state == ShardState.QUEUED,
            Shard.next_run_at > db_now(),
        )
        await connection.execute(update(Shard).where(Shard.id.in_(due)).values(next_run_at=db_now()))
        locked = await lock_jobs(connection, Job.id.in_(job_ids), WAITING_FOR_PROVIDER)
        await connection.execute(update(Job).where(Job.id.in_(locked)).values(not_before=None))


WAITING_FOR_PROVIDER = (
    (Job.not_before > db_now()) & (Job.waiting_on == "provider") & (Job.status == JobStatus.IN_PROGRESS)
)


def _unknown_alias(alias: str) -> Cause:
    return Cause(
        account="",
        code="model_not_found",
        message=f"the configuration of the worker has no model {alias[:200]}",
        advice="Start API, workers and scheduler with the same configuration file.",
    )
