"""Waiting for a provider: a shard that meets an outage goes back unspent, and its job says what it waits for.

Inputs fail only when an outage has kept their job from any progress for EMBEDMILL_UPSTREAM_OUTAGE_HOURS.
"""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record import fail_rest
from engine.jobs.row_locks import lock_jobs, lock_shards
from engine.jobs.scheduling.dispatch import dispatch
from engine.routing.outage_causes import Cause, cause_of
from engine.routing.outages import Outage, new_outage
from engine.runtime import Runtime
from models.base import db_now
from models.errors import (
    EmbedmillError,
    NoRoute,
    RequestError,
    RouteQuarantined,
    UnknownAlias,
    UpstreamError,
    UpstreamRateLimited,
)
from models.job import Job, JobStatus, Shard, ShardState
from models.outage import RouteOutage

log = logging.getLogger("embedmill.jobs")

# With more jobs than that waiting, most come back a little later than the next probe: one of them makes it.
FEW_JOBS = 20
MANY_JOBS_SPREAD_S = 8.0
# Inputs that draw a 429 by themselves are tried no sooner.
OWN_PAUSE_S = 20.0
WOKEN_AT_ONCE = 500


class ProviderOutage(EmbedmillError):
    """The error of inputs whose provider was out of reach for too long."""

    retryable = True


def outage_of(runtime: Runtime, held: ClaimedShard, error: EmbedmillError | None) -> Outage | None:
    """The outage that keeps the shard from going on, where it is one that stopped it."""
    if isinstance(error, UnknownAlias):
        return new_outage(_unknown_alias(held.alias))
    if not isinstance(error, UpstreamError | NoRoute) or isinstance(error, RouteQuarantined):
        return None
    try:
        alias = runtime.apply_gateway_options(runtime.alias(held.alias), held.options)
    except RequestError:
        return None
    return runtime.router.outage_of(alias)


async def wait_for_provider(runtime: Runtime, held: ClaimedShard, outage: Outage) -> None:
    """Give the shard back until the next health probe; after too long a wait, fail what is left of it."""
    async with runtime.database.read() as connection:
        now, waits_since = await _waits_since(connection, held)
        some = (
            select(Job.id)
            .where(Job.blocked_until.is_not(None), Job.waiting_on == "provider")
            .limit(FEW_JOBS + 1)
            .subquery()
        )
        count = (await connection.execute(select(func.count()).select_from(some))).scalar_one()
    if now - waits_since > runtime.settings.upstream_outage_hours * 3600:
        log.warning("an outage has lasted too long", extra={"job_id": held.job_id, "shard_id": held.shard_id})
        await fail_rest(runtime, held, ProviderOutage(outage.cause.sentence(), code=outage.cause.code))
        return
    spread_s = 0.5 if count <= FEW_JOBS else MANY_JOBS_SPREAD_S
    await claims.release(
        runtime,
        held,
        delay_s=outage.next_attempt_in_s + random.uniform(0.05, spread_s),
        spent=False,
        reason=outage.cause.sentence(),
        waiting_on="provider",
        waiting=outage.cause.waiting(outage.since) | {"waits_since": waits_since},
    )


async def wait_for_inputs(runtime: Runtime, held: ClaimedShard, error: UpstreamRateLimited) -> None:
    """Give a shard back all of whose other inputs have their outcome: the provider answers 429 to these alone.

    Other shards of the job go on. After as long a wait as for an outage these inputs fail.
    """
    async with runtime.database.read() as connection:
        now, waits_since = await _waits_since(connection, held)
    if now - waits_since > runtime.settings.upstream_outage_hours * 3600:
        log.warning("inputs were refused for too long", extra={"job_id": held.job_id, "shard_id": held.shard_id})
        await fail_rest(runtime, held, error)
        return
    delay_s = max(OWN_PAUSE_S, error.retry_after_s or 0.0)
    await claims.release(
        runtime,
        held,
        delay_s=delay_s + random.uniform(0, delay_s / 10),
        spent=False,
        reason=error.message,
        waiting_on="provider",
        waiting=cause_of(error.account, error).waiting(now) | {"waits_since": waits_since},
        blocks_job=False,
    )


async def _waits_since(connection: AsyncConnection, held: ClaimedShard) -> tuple[float, float]:
    """Now, and since when the job has waited for its provider without any progress. Unix seconds."""
    found = await connection.execute(select(Job.waiting, db_now().label("now")).where(Job.id == held.job_id))
    row = found.one_or_none()
    if row is None:
        return time.time(), time.time()
    return row.now, (row.waiting or {}).get("waits_since") or row.now


async def release(runtime: Runtime, held: ClaimedShard, error: EmbedmillError, *, delay_s: float, spent: bool) -> None:
    """Give the shard back after an error that is no outage; where it is the provider's, the job says so."""
    waiting: dict[str, Any] | None = None
    if isinstance(error, UpstreamError):
        waiting = cause_of(error.account, error).waiting(time.time())
    elif isinstance(error, RouteQuarantined):
        advice = "See `embedmill doctor`; `embedmill doctor --release ACCOUNT` lets it serve again."
        waiting = Cause(_first_account(runtime, held), error.code, error.message, advice).waiting(time.time())
    waiting_on = "provider" if waiting is not None or error.retryable else None
    await claims.release(
        runtime, held, delay_s=delay_s, spent=spent, reason=error.message, waiting_on=waiting_on, waiting=waiting
    )


def _first_account(runtime: Runtime, held: ClaimedShard) -> str:
    alias = runtime.aliases.get(held.alias)
    return alias.routes[0].provider if alias is not None else ""


async def wake(runtime: Runtime) -> None:
    """Let jobs go on at once whose provider answers again: its outage is gone from the table."""
    async with runtime.database.read() as connection:
        down = set((await connection.execute(select(RouteOutage.account))).scalars())
        rows = (await connection.execute(select(Job.id, Job.waiting).where(BLOCKED).limit(WOKEN_AT_ONCE))).all()
    await _let_go_on(
        runtime, [row.id for row in rows if row.waiting and row.waiting.get("provider") not in ("", *down)]
    )


async def try_changed_secrets(runtime: Runtime) -> None:
    """Read secrets whose files have changed; their accounts are tried again now, and jobs that wait for them go on.

    Raises StorageUnavailable; then it is done the next time.
    """
    await runtime.upstream.secrets.refresh()
    for account in runtime.upstream.secrets.take_changed():
        try:
            await runtime.router.outages.probe_now(account)
            async with runtime.database.read() as connection:
                rows = (await connection.execute(select(Job.id, Job.waiting).where(BLOCKED).limit(WOKEN_AT_ONCE))).all()
            await _let_go_on(
                runtime, [row.id for row in rows if row.waiting and row.waiting.get("provider") == account]
            )
            await dispatch(runtime)
        except Exception:
            runtime.upstream.secrets.note_changed(account)
            raise


async def _let_go_on(runtime: Runtime, over: list[str]) -> None:
    if not over:
        return
    async with runtime.database.write() as connection:
        due = await lock_shards(
            connection,
            Shard.job_id.in_(over),
            Shard.state == ShardState.QUEUED,
            Shard.next_run_at > db_now(),
        )
        await connection.execute(update(Shard).where(Shard.id.in_(due)).values(next_run_at=db_now()))
        locked = await lock_jobs(connection, Job.id.in_(over), BLOCKED)
        await connection.execute(update(Job).where(Job.id.in_(locked)).values(blocked_until=None))


BLOCKED = (Job.blocked_until > db_now()) & (Job.waiting_on == "provider") & (Job.status == JobStatus.IN_PROGRESS)


def _unknown_alias(alias: str) -> Cause:
    return Cause(
        account="",
        code="model_not_found",
        message=f"the configuration of the worker has no model {alias[:200]}",
        advice="Start API, workers and scheduler with the same configuration file.",
    )
