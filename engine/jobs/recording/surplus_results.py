"""Late results: vectors of inputs that already had their outcome. The ledger records them as wasted."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording import calls_without_results
from engine.ledger import usage_rows
from engine.observability.telemetry import count_cost
from models.base import db_now
from models.embedding import BatchOutcome
from models.usage import UsageKind, UsageRecord

CODE = "late_result"


async def insert_surplus_results(
    connection: AsyncConnection,
    shard: ClaimedShard,
    late: Sequence[BatchOutcome],
    record_id: str,
    *,
    first_try: bool,
    code: str = CODE,
) -> None:
    """Record late or unusable outcomes as wasted, in a transaction that has locked the shard.

    A repeated commit finds its own results stored. So unless this is known to be the record's `first_try`, nothing is
    inserted where rows of the record exist.
    """
    rows = usage_rows.delivered(
        late,
        project=shard.project,
        key_id=shard.key_id,
        lane="bulk",
        alias=shard.alias,
        user=shard.options.user,
        job_id=shard.job_id,
        kind=UsageKind.WASTED,
        code=code,
        row_id=f"{record_id}.late",
    )
    if not rows:
        return
    if not first_try:
        ids = [f"{record_id}.{kind}{number}" for kind in ("", "late") for number in range(len(rows))]
        known = select(UsageRecord.id).where(UsageRecord.id.in_(ids)).limit(1)
        if (await connection.execute(known)).first() is not None:
            return
    await connection.execute(insert(UsageRecord).values(at=db_now()), rows)
    count_cost(rows)
    await calls_without_results.add_to_counters(connection, shard.job_id, rows)
