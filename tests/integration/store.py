"""A store to test against: a real database, the engine on it, a notifier that only records, and time that can pass."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update

from engine.access.keys import Caller
from engine.cancellation import CancellationToken
from engine.config.settings import Settings
from engine.corpus.lines import ParsedRecords
from engine.job_store import JobStore
from engine.jobs.composition import dispatcher_of, intake_parts_of
from engine.jobs.execution.release import StoppedRun
from engine.jobs.execution.results_writer import ResultsWriter
from engine.jobs.ingest import job_intake
from engine.jobs.ingest.job_intake import JobIntake, Reservation
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.run_calls import RunCalls
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.process.work_threads import WorkThreads
from engine.queue.broker import Notifier
from engine.runtime import Runtime
from engine.storage.database import Database
from models.base import db_now
from models.embedding import BatchOutcome, Input, InputError, Options, Route
from models.errors import EmbedmillError
from models.job import Job, Shard
from providers.fake import fake_tokens, fake_vectors

MODEL = "test/8"
UPSTREAM_MODEL = "m"
WIDTH = 8
SHARD_INPUTS = 10
ATTEMPTS = 3
# Two routes, and a price that no whole number of picodollars divides: rounding must not part ledger and job.
CONFIG = f"""
[providers.one]
kind = "fake"
[providers.two]
kind = "fake"

[models."{MODEL}"]
dimensions = {WIDTH}
input_usd_per_million_tokens = "0.0123457"
verify_spaces = false
[[models."{MODEL}".routes]]
provider = "one"
model = "{UPSTREAM_MODEL}"
[[models."{MODEL}".routes]]
provider = "two"
model = "{UPSTREAM_MODEL}"
"""


class RecordingNotifier(Notifier):
    """A queue of messages that no worker reads. `works` False: an unavailable broker."""

    def __init__(self) -> None:
        super().__init__("")
        self.queued = 0
        self.works = True

    async def notify(self, messages: int) -> bool:
        await asyncio.sleep(0)
        if self.works:
            self.queued = max(self.queued, messages)
        return self.works

    async def waiting(self) -> int | None:
        await asyncio.sleep(0)
        return self.queued if self.works else None


@dataclass
class Store:
    """The engine's verbs on one database, with the few shorthands that tests need."""

    runtime: Runtime
    notifier: RecordingNotifier

    @classmethod
    def open(cls, database_url: str, folder: Path, **settings: Any) -> Store:
        config = folder / "embedmill.toml"
        config.write_text(CONFIG)
        chosen = {"shard_inputs": SHARD_INPUTS, "batch_inputs": 4, "shard_attempts": ATTEMPTS} | settings
        runtime = Runtime.open(Settings(data_dir=folder, database_url=database_url, config=str(config), **chosen))
        runtime.notifier = notifier = RecordingNotifier()
        return cls(runtime, notifier)

    def another(self) -> Store:
        """The same database as another process sees it: with connections of its own. Close it."""
        runtime = Runtime.open(self.runtime.settings)
        runtime.notifier = notifier = RecordingNotifier()
        return Store(runtime, notifier)

    async def close(self) -> None:
        await self.runtime.close()

    @property
    def jobs(self) -> JobStore:
        return self.runtime.store

    @property
    def database(self) -> Database:
        return self.runtime.database

    @property
    def work(self) -> WorkThreads:
        return self.runtime.work

    @property
    def dispatcher(self) -> Dispatcher:
        return dispatcher_of(self.runtime)

    @property
    def routes(self) -> tuple[Route, ...]:
        return self.runtime.alias(MODEL).routes

    async def submit(
        self,
        count: int = SHARD_INPUTS,
        *,
        project: str = "p",
        tag: str = "text",
        bad: Collection[int] = (),
        with_ids: bool = False,
    ) -> str:
        """A whole job of `count` inputs; those in `bad` are refused at the door. Returns its id."""
        lines = ParsedRecords()
        for index in range(count):
            lines.add("" if index in bad else text_of(tag, index), f"id-{index}" if with_ids else None)
        async with self.receiving(project=project) as intake:
            await intake.add(lines)
            await intake.finish(b"fingerprint")
        return intake.job_id

    def receiving(
        self, *, project: str = "p", job_id: str | None = None, key: str | None = None
    ) -> AbstractAsyncContextManager[JobIntake]:
        reservation = None if job_id is None and key is None else job_intake.new_reservation(job_id, key)
        return self.receiving_as(reservation, project=project)

    def receiving_as(
        self, reservation: Reservation | None, *, project: str = "p"
    ) -> AbstractAsyncContextManager[JobIntake]:
        wanted = job_intake.JobSpec(self.runtime.alias(MODEL), WIDTH, Options(user="u"), {}, "req_test")
        return job_intake.open_intake(
            intake_parts_of(self.runtime), Caller("key", project, frozenset()), wanted, reservation
        )

    async def job(self, job_id: str) -> Any:
        return (await self._rows(select(*Job.__table__.columns).where(Job.id == job_id)))[0]

    async def status(self, job_id: str) -> str:
        return str((await self.job(job_id)).status)

    async def shards(self, job_id: str) -> Sequence[Any]:
        columns = (*Shard.__table__.columns, Shard.count.label("size"))
        return await self._rows(select(*columns).where(Shard.job_id == job_id).order_by(Shard.first_index))

    async def shard_ids(self, job_id: str) -> list[str]:
        return [shard.id for shard in await self.shards(job_id)]

    async def state_of(self, shard_id: str) -> str:
        return str((await self._rows(select(Shard.state).where(Shard.id == shard_id)))[0][0])

    async def claim(self, shard_id: str, worker: str = "w") -> ClaimedShard:
        held = await claims.claim(self.jobs, shard_id, worker)
        assert held is not None, "there was nothing to claim"
        return held

    async def claim_all(self, job_id: str) -> list[ClaimedShard]:
        return [await self.claim(shard_id) for shard_id in await self.shard_ids(job_id)]

    async def count(self, table: Any, *where: Any) -> int:
        return int((await self._rows(select(func.count()).select_from(table).where(*where)))[0][0])

    async def set_job(self, job_id: str, **values: Any) -> None:
        async with self.runtime.database.write() as connection:
            await connection.execute(update(Job).where(Job.id == job_id).values(values))

    async def set_shard(self, shard_id: str, **values: Any) -> None:
        async with self.runtime.database.write() as connection:
            await connection.execute(update(Shard).where(Shard.id == shard_id).values(values))

    async def expire_lease(self, shard_id: str) -> None:
        """Let the time of a lease pass."""
        await self.set_shard(shard_id, lease_until=db_now() - 1.0)

    async def _rows(self, statement: Any) -> Sequence[Any]:
        async with self.runtime.database.read() as connection:
            return (await connection.execute(statement)).all()


def text_of(tag: str, index: int) -> str:
    return f"{tag} number {index} " + "x" * (index % 7)


def landed(
    held: ClaimedShard, positions: Sequence[int] | None = None, *, route: Route, cut: int = 4
) -> list[BatchOutcome]:
    """What upstream calls of `cut` inputs each would bring for these positions of a shard (default: all that wait)."""
    chosen = held.open_positions() if positions is None else list(positions)
    return [_landed(held, chosen[low : low + cut], route) for low in range(0, len(chosen), cut)]


def _landed(held: ClaimedShard, positions: Sequence[int], route: Route) -> BatchOutcome:
    inputs = [_input(held, position) for position in positions]
    tokens = sum(map(fake_tokens, inputs))
    return BatchOutcome(
        [held.first_index + position for position in positions],
        fake_vectors(inputs, held.width, UPSTREAM_MODEL),
        None,
        tokens,
        False,
        Decimal(tokens) * route.usd_per_million_tokens / 1_000_000,
        route,
    )


def refused(held: ClaimedShard, positions: Sequence[int], code: str = "upstream_rejected") -> list[BatchOutcome]:
    """Refusals of single inputs, as a split that found them brings them."""
    error = InputError(code, "the provider refused this input")
    return [
        BatchOutcome([held.first_index + position], None, error, 0, False, Decimal(0), None) for position in positions
    ]


def spoiled(part: BatchOutcome) -> BatchOutcome:
    """The same part with other vectors, to see whose were kept."""
    assert part.vectors is not None
    return part._replace(vectors=-part.vectors)


def _input(held: ClaimedShard, position: int) -> Input:
    item = held.inputs[position]
    assert item is not None, "a refused input is not sent upstream"
    return item


def writer_of(store: Store, shard: ClaimedShard) -> ResultsWriter:
    """A writer of results as a run of the shard has it."""
    runtime, calls = store.runtime, RunCalls(store.runtime.journal, shard)
    return ResultsWriter(store.jobs, runtime.spool, shard, calls, CancellationToken(), runtime.blocked_shards)


def stopped_run(store: Store, shard: ClaimedShard, error: EmbedmillError) -> StoppedRun:
    """A run of the shard that was stopped by this error."""
    return StoppedRun(store.jobs, store.runtime.router, store.runtime.alias(MODEL), shard, error)
