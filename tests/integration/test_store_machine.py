"""Any order of claims, records, lost leases, releases, cancels, sweeps and deletes leaves the store true to itself.

Workers of this machine may be as late as they like: a claim, once made, is kept and used again long after it was lost.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.jobs import claim as claims
from engine.jobs import ending
from engine.jobs.claim import Claim
from engine.jobs.record import record
from engine.jobs.sweep import sweep
from models.base import db_now
from models.embedding import Landed, Matrix
from models.errors import Conflict, JobNotFound
from models.job import FINISHED, LEGAL_MOVES, JobStatus
from providers.fake import fake_vectors
from tests.integration.store import SHARD_INPUTS, UPSTREAM_MODEL, WIDTH, Store, landed, refused, text_of
from tests.integration.truth import Truth
from tests.services import PostgresServer, SqliteFiles

T = TypeVar("T")
SHARDS = 3
TOTAL = SHARDS * SHARD_INPUTS - 4

shards = st.integers(0, SHARDS - 1)
picks = st.integers(0, 99)


class StoreMachine(RuleBasedStateMachine):
    """One job in one database, and everyone who might touch it. `make_url` comes from the test that runs it."""

    make_url: Callable[[Path], str]
    drop_url: Callable[[str], None]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="embedmill-machine-"))
        self.url = type(self).make_url(self.folder)
        self.runner = asyncio.Runner()
        self.store = Store.open(self.url, self.folder)
        self.shard_ids: list[str] = []
        self.held: list[Claim] = []
        self.seen_status = JobStatus.IN_PROGRESS
        self.seen_outcomes: dict[int, bytes | str] = {}
        self.seen_ledger = 0
        self.deleted = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(bad=st.sets(st.integers(0, TOTAL - 1), max_size=4))
    def submit(self, bad: set[int]) -> None:
        self.job_id = self.run(self.store.submit(TOTAL, bad=bad))
        self.shard_ids = self.run(self.store.shard_ids(self.job_id))

    @rule(shard=shards)
    def claim(self, shard: int) -> None:
        held = self.run(claims.claim(self.store.runtime, self.shard_ids[shard], "w"))
        if held is not None:
            self.held.append(held)

    @precondition(lambda self: self.held)
    @rule(
        pick=picks,
        positions=st.sets(st.integers(0, SHARD_INPUTS - 1), min_size=1),
        cut=st.integers(1, SHARD_INPUTS),
        guilty=st.sets(st.integers(0, SHARD_INPUTS - 1), max_size=2),
    )
    def record_some(self, pick: int, positions: set[int], cut: int, guilty: set[int]) -> None:
        held = self._any_claim(pick)
        could = [position for position in sorted(positions) if position in held.waiting()]
        parts: list[Landed] = []
        if good := [position for position in could if position not in guilty]:
            parts += landed(held, good, route=self.store.routes[pick % 2], cut=cut)
        parts += refused(held, [position for position in could if position in guilty])
        self.run(record(self.store.runtime, held, parts))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def record_all(self, pick: int) -> None:
        held = self._any_claim(pick)
        self.run(record(self.store.runtime, held, landed(held, route=self.store.routes[pick % 2])))

    @precondition(lambda self: self.held)
    @rule(pick=picks, spent=st.booleans(), waiting_on=st.sampled_from([None, "quota"]))
    def release(self, pick: int, spent: bool, waiting_on: str | None) -> None:
        held = self._any_claim(pick)
        self.run(claims.release(self.store.runtime, held, delay_s=0.0, spent=spent, reason="r", waiting_on=waiting_on))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def beat(self, pick: int) -> None:
        held = self._any_claim(pick)
        ours = self.run(claims.heartbeat(self.store.runtime, held))
        newest = max(one.fence for one in self.held if one.shard_id == held.shard_id)
        assert not ours or held.fence == newest, "a stale worker extended a lease"

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def let_go_if_told(self, pick: int) -> None:
        held = self._any_claim(pick)
        if self.seen_status != JobStatus.IN_PROGRESS:
            self.run(ending.let_go(self.store.runtime, self.job_id, held.shard_id, held.fence))

    @rule(shard=shards)
    def lease_runs_out(self, shard: int) -> None:
        self.run(self.store.expire_lease(self.shard_ids[shard]))

    @rule()
    def sweep(self) -> None:
        self.run(sweep(self.store.runtime))

    @rule()
    def two_sweeps_at_once(self) -> None:
        async def both() -> None:
            await asyncio.gather(sweep(self.store.runtime), sweep(self.store.runtime))

        self.run(both())

    @rule()
    def cancel(self) -> None:
        try:
            self.run(ending.cancel(self.store.runtime, "p", self.job_id))
        except JobNotFound:
            assert self.deleted
        except Conflict:
            assert self.seen_status in FINISHED

    @rule()
    def delete(self) -> None:
        try:
            self.run(ending.remove(self.store.runtime, "p", self.job_id))
        except JobNotFound:
            assert self.deleted
        self.deleted = True

    @rule()
    def time_passes(self) -> None:
        self.run(self.store.set_job(self.job_id, mark_at=db_now() - 60.0))

    @invariant()
    def everything_agrees(self) -> None:
        if not self.shard_ids:
            return
        truth = self.run(Truth.read(self.store.runtime.database, self.job_id))
        truth.check(_expected)
        assert truth.tokens_in_ledger >= self.seen_ledger, "the ledger lost rows"
        self.seen_ledger = truth.tokens_in_ledger
        if truth.job is None:
            assert self.deleted
            return
        assert _may_move(self.seen_status, truth.job.status), f"{self.seen_status} became {truth.job.status}"
        self.seen_status = JobStatus(truth.job.status)
        outcomes = _outcomes(truth)
        if not self.deleted:
            lost = {index for index, was in self.seen_outcomes.items() if outcomes.get(index) != was}
            assert not lost, f"outcomes of {lost} were changed or lost"
            self.seen_outcomes = outcomes

    def teardown(self) -> None:
        """However it went, the job comes to its end by sweeps and honest workers alone."""
        try:
            if self.shard_ids and not self.deleted:
                self._bring_to_its_end()
        finally:
            self.run(self.store.close())
            self.runner.close()
            type(self).drop_url(self.url)
            shutil.rmtree(self.folder)

    def _bring_to_its_end(self) -> None:
        for _ in range(12):
            for shard in range(SHARDS):
                self.claim(shard)
                if self.held and self.held[-1].shard_id == self.shard_ids[shard]:
                    held = self.held[-1]
                    self.run(record(self.store.runtime, held, landed(held, route=self.store.routes[0])))
                self.lease_runs_out(shard)
            self.sweep()
        self.everything_agrees()
        assert self.seen_status in FINISHED, f"the job is {self.seen_status} for ever"

    def _any_claim(self, pick: int) -> Claim:
        return self.held[pick % len(self.held)]


def _may_move(before: JobStatus, after: str) -> bool:
    """Along legal moves, several of which may lie between two looks."""
    reached, front = {before}, {before}
    while front:
        front = {target for state in front for target in LEGAL_MOVES[state]} - reached
        reached |= front
    return after in reached


def _outcomes(truth: Truth) -> dict[int, bytes | str]:
    width = WIDTH * 4
    found: dict[int, bytes | str] = {row.index: row.code for row in truth.failures}
    for run in truth.runs:
        for row in range(run.count):
            found[run.first_index + row] = run.data[row * width : (row + 1) * width]
    return found


def _expected(indexes: Any) -> Matrix:
    return fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL)


@pytest.fixture(params=["sqlite", "postgres"])
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[type[StoreMachine], int]]:
    """The machine on one database, and how many runs of it are worth their time there."""
    if request.param == "sqlite":
        files: SqliteFiles = request.getfixturevalue("sqlite_files")
        make, drop, examples = files.create, lambda url: None, 15
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        make, drop, examples = lambda folder: server.create(), server.drop, 4

    class Machine(StoreMachine):
        make_url = staticmethod(make)
        drop_url = staticmethod(drop)

    yield Machine, examples


def test_the_store_stays_true_to_itself(machine: tuple[type[StoreMachine], int]) -> None:
    kind, examples = machine
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            # No shrinking: it may take minutes, and the steps are printed as they are.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
