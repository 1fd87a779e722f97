"""The oracle of the store: what the rows of a job say, and whether all of them say the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from sqlalchemy import select

from engine.jobs.leasing.claim import decode_bitmap
from engine.jobs.recording import refused_inputs
from engine.storage.database import Database
from models.embedding import Matrix
from models.job import FINISHED, Job, JobInputError, JobStatus, Shard, ShardState, VectorBlock
from models.usage import UsageKind, UsageRecord

OPEN = (ShardState.QUEUED, ShardState.RUNNING)
Expected = Callable[[Sequence[int]], Matrix]


@dataclass(frozen=True)
class DatabaseSnapshot:
    """All rows of one job. `job` is None when it has been removed."""

    job: Any | None
    shards: Sequence[Any]
    runs: Sequence[Any]
    failures: Sequence[Any]
    ledger: Sequence[Any]

    @classmethod
    async def read(cls, database: Database, job_id: str) -> DatabaseSnapshot:
        """One snapshot of everything: a moment between two transactions, never half of one."""
        # A write transaction holds still on SQLite; on PostgreSQL the isolation level does.
        async with database.write() as connection:
            if not database.is_sqlite:
                await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")

            async def rows(table: Any, *where: Any) -> Sequence[Any]:
                return (await connection.execute(select(*table.__table__.columns).where(*where))).all()

            jobs = await rows(Job, Job.id == job_id)
            return cls(
                jobs[0] if jobs else None,
                await rows(Shard, Shard.job_id == job_id),
                await rows(VectorBlock, VectorBlock.job_id == job_id),
                [
                    *await rows(JobInputError, JobInputError.job_id == job_id),
                    *await refused_inputs.between(connection, job_id, 0, 2**62),
                ],
                await rows(UsageRecord, UsageRecord.job_id == job_id),
            )

    @property
    def with_vector(self) -> list[int]:
        return [index for run in self.runs for index in range(run.first_index, run.first_index + run.count)]

    @property
    def with_error(self) -> list[int]:
        return [failure.index for failure in self.failures]

    def of_kind(self, *kinds: UsageKind) -> list[Any]:
        """Rows of the ledger."""
        return [record for record in self.ledger if record.kind in kinds]

    @property
    def tokens_in_ledger(self) -> int:
        """Of what was delivered."""
        return sum(record.prompt_tokens for record in self.of_kind(UsageKind.DELIVERED))

    @property
    def cost_in_ledger(self) -> Decimal:
        """Of what was delivered."""
        return total_usd(self.of_kind(UsageKind.DELIVERED))

    def check(self, expected: Expected | None = None) -> None:
        """Every invariant that holds at any moment; with `expected`, every stored vector too."""
        outcomes = sorted(self.with_vector + self.with_error)
        assert len(outcomes) == len(set(outcomes)), f"indexes with two outcomes: {_doubles(outcomes)}"
        if self.job is None:
            assert not (self.shards or outcomes), "rows were left of a job that is gone"
            return
        if self.job.deleted_at is not None:  # its rows go step by step
            return
        self._check_counters()
        self._check_settled(set(outcomes))
        if expected is not None:
            self._check_vectors(expected)

    @property
    def inputs_in_ledger(self) -> int:
        """Of what was delivered."""
        return sum(record.inputs for record in self.of_kind(UsageKind.DELIVERED))

    def unbalanced(self) -> list[str]:
        """Where the job's counters, its outcomes and its ledger do not say the same."""
        job = self.job
        assert job is not None
        counters = job._mapping
        pairs = {
            "inputs with a vector": (job.completed, len(self.with_vector)),
            "inputs with an error": (job.failed, len(self.with_error)),
            "inputs in the error summary": (sum(entry["count"] for entry in job.error_summary), job.failed),
            "tokens": (job.prompt_tokens, self.tokens_in_ledger),
            "cost": (job.cost_usd, total_usd(self.of_kind(UsageKind.DELIVERED, UsageKind.WASTED))),
            "inputs in the ledger": (self.inputs_in_ledger, job.completed - job.deduplicated),
        }
        for kind in (UsageKind.WASTED, UsageKind.AMBIGUOUS):
            rows = self.of_kind(kind)
            pairs |= {
                f"{kind} calls": (counters[f"{kind}_calls"], sum(row.calls for row in rows)),
                f"{kind} inputs": (counters[f"{kind}_inputs"], sum(row.inputs for row in rows)),
                f"{kind} tokens": (counters[f"{kind}_tokens"], sum(row.prompt_tokens for row in rows)),
                f"{kind} cost": (counters[f"{kind}_cost_usd"], total_usd(rows)),
            }
        return [f"{what}: {one} and {other}" for what, (one, other) in pairs.items() if one != other]

    def _check_counters(self) -> None:
        job = self.job
        assert job is not None
        assert not self.unbalanced()
        assert job.open_shards == sum(shard.state in OPEN for shard in self.shards)
        assert job.ingested == sum(shard.count for shard in self.shards)
        assert (job.finished_at is not None) == (job.status in FINISHED)
        if job.status in (JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS):
            assert job.open_shards == 0 and job.completed + job.failed == job.total == job.ingested
            assert (job.failed > 0) == (job.status == JobStatus.COMPLETED_WITH_ERRORS)

    def _check_settled(self, outcomes: set[int]) -> None:
        for shard in self.shards:
            bits = decode_bitmap(shard.outcome_bitmap, shard.count)
            settled = {shard.first_index + int(position) for position in np.flatnonzero(bits)}
            mine = {index for index in outcomes if 0 <= index - shard.first_index < shard.count}
            assert settled == mine, (
                f"shard at {shard.first_index} calls {settled ^ mine} settled, or not, against its rows"
            )
            if shard.state == ShardState.DONE:
                assert bits.all(), f"shard at {shard.first_index} is done, but not all of it is settled"

    def _check_vectors(self, expected: Expected) -> None:
        job = self.job
        assert job is not None
        for run in self.runs:
            kept = np.frombuffer(run.data, dtype="<f4").reshape(run.count, job.dimensions)
            wanted = expected(range(run.first_index, run.first_index + run.count))
            assert np.array_equal(kept, wanted), f"a vector of the run at {run.first_index} is not its text's"


def total_usd(records: Sequence[Any]) -> Decimal:
    return sum((record.cost_usd for record in records), Decimal(0))


def _doubles(sorted_numbers: Sequence[int]) -> list[int]:
    return [a for a, b in itertools.pairwise(sorted_numbers) if a == b]
