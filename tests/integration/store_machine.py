"""Any order of claims, records, lost leases, releases, pauses, retries, cancels, sweeps and deletes leaves the store
true to itself.

Workers of this machine may be as late as they like: a claim, once made, is kept and used again long after it was lost.
The database itself notes every change of a state, so that no forbidden move hides between two looks.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import select

from api.jobs.render import job_object
from engine.jobs.control import pause_resume, termination
from engine.jobs.control.retry import retry
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record_outcomes import record
from models.base import db_now
from models.embedding import BatchOutcome, Matrix
from models.errors import Conflict, JobNotFound
from models.job import FINISHED, LEGAL_MOVES, Job, JobStatus, Shard, ShardState
from providers.fake import fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.state_moves import SHARD_MOVES, moves_after, note_every_move
from tests.integration.store import SHARD_INPUTS, UPSTREAM_MODEL, WIDTH, Store, landed, refused, text_of
from tests.running import sweep

T = TypeVar("T")
SHARDS = 3
TOTAL = SHARDS * SHARD_INPUTS - 4

# More than there are at first: those that are cut off later are asked for too.
shards = st.integers(0, 2 * SHARDS - 1)
picks = st.integers(0, 99)
rarely = st.integers(0, 5)  # what is 0 happens: after an end that is final there is little to see


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
        self.held: list[ClaimedShard] = []
        self.seen_status = JobStatus.IN_PROGRESS
        self.seen_outcomes: dict[int, bytes | str] = {}
        self.seen_ledger = 0
        self.seen_moves = 0
        self.seen_version = 0
        self.seen_done = 0
        self.retried = False
        self.deleted = False
        self.run(note_every_move(self.store))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @initialize(bad=st.sets(st.integers(0, TOTAL - 1), max_size=4))
    def submit(self, bad: set[int]) -> None:
        self.job_id = self.run(self.store.submit(TOTAL, bad=bad))
        self.shard_ids = self.run(self.store.shard_ids(self.job_id))

    @rule(shard=shards)
    def claim(self, shard: int) -> None:
        held = self.run(claims.claim(self.store.jobs, self.shard_ids[shard % len(self.shard_ids)], "w"))
        if held is not None:
            assert self.seen_status == JobStatus.IN_PROGRESS, f"a shard of a job that is {self.seen_status} was claimed"
            self.held.append(held)

    @rule(shard=shards)
    def three_workers_claim_one_shard(self, shard: int) -> None:
        async def claim() -> list[ClaimedShard | None]:
            shard_id = self.shard_ids[shard % len(self.shard_ids)]
            return await asyncio.gather(*(claims.claim(self.store.jobs, shard_id, f"w{n}") for n in range(3)))

        taken = [held for held in self.run(claim()) if held is not None]
        assert len(taken) <= 1
        self.held += taken

    @rule()
    def three_workers_claim_the_next_shard(self) -> None:
        async def claim() -> list[ClaimedShard | None]:
            return await asyncio.gather(*(claims.claim_next(self.store.jobs, f"w{n}") for n in range(3)))

        taken = [held for held in self.run(claim()) if held is not None]
        assert len({held.shard_id for held in taken}) == len(taken)
        assert not taken or self.seen_status == JobStatus.IN_PROGRESS
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(
        pick=picks,
        positions=st.sets(st.integers(0, SHARD_INPUTS - 1), min_size=1),
        cut=st.integers(1, SHARD_INPUTS),
        offending_position=st.sets(st.integers(0, SHARD_INPUTS - 1), max_size=2),
    )
    def record_some(self, pick: int, positions: set[int], cut: int, offending_position: set[int]) -> None:
        held = self._any_claim(pick)
        could = [position for position in sorted(positions) if position in held.open_positions()]
        parts: list[BatchOutcome] = []
        if good := [position for position in could if position not in offending_position]:
            parts += landed(held, good, route=self.store.routes[pick % 2], cut=cut)
        parts += refused(held, [position for position in could if position in offending_position])
        self._record(held, parts)

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def fail_all(self, pick: int) -> None:
        """As one does whose attempts are spent; it may be a zombie that has long lost its shard."""
        held = self._any_claim(pick)
        self._record(held, refused(held, held.open_positions()))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def record_all(self, pick: int) -> None:
        held = self._any_claim(pick)
        self.run(record(self.store.jobs, held, landed(held, route=self.store.routes[pick % 2])))

    @precondition(lambda self: self.held)
    @rule(pick=picks, spent=st.booleans(), waiting_on=st.sampled_from([None, "quota"]))
    def release(self, pick: int, spent: bool, waiting_on: str | None) -> None:
        held = self._any_claim(pick)
        self.run(
            claims.release(
                self.store.jobs, held, delay_s=0.0, counts_as_attempt=spent, reason="r", waiting_on=waiting_on
            )
        )

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def beat(self, pick: int) -> None:
        held = self._any_claim(pick)
        ours = self.run(claims.heartbeat(self.store.jobs, held))
        assert not ours or held.fence == self.run(self._fence_and_failed(held))[0], "a stale worker extended a lease"
        assert not ours or self.seen_status == JobStatus.IN_PROGRESS

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def let_go_if_told(self, pick: int) -> None:
        held = self._any_claim(pick)
        if self.seen_status != JobStatus.IN_PROGRESS:
            self.run(termination.drop_claim(self.store.jobs, held))

    @rule(shard=shards)
    def lease_runs_out(self, shard: int) -> None:
        self.run(self.store.expire_lease(self.shard_ids[shard % len(self.shard_ids)]))

    @rule(shard=shards)
    def another_takes_over(self, shard: int) -> None:
        self.lease_runs_out(shard)
        self.claim(shard)

    @rule()
    def sweep(self) -> None:
        self.run(sweep(self.store.runtime))
        self._notice_halves()

    @rule()
    def two_sweeps_at_once(self) -> None:
        async def both() -> None:
            await asyncio.gather(sweep(self.store.runtime), sweep(self.store.runtime))

        self.run(both())
        self._notice_halves()

    @rule(chance=rarely)
    def cancel(self, chance: int) -> None:
        if chance:
            return
        try:
            self.run(termination.cancel(self.store.jobs, "p", self.job_id))
        except JobNotFound:
            assert self.deleted
        except Conflict:
            assert self.seen_status in FINISHED

    @rule()
    def pause(self) -> None:
        self._steer(pause_resume.pause, {JobStatus.IN_PROGRESS, JobStatus.PAUSED})

    @rule()
    def resume(self) -> None:
        self._steer(pause_resume.resume, {JobStatus.IN_PROGRESS, JobStatus.PAUSED}, dispatcher=self.store.dispatcher)

    @rule()
    def retry(self) -> None:
        # Also refused where every failed input was so when it arrived.
        where = {JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED}
        if self._steer(retry, where, may_refuse=True, dispatcher=self.store.dispatcher):
            self.retried = True

    @rule()
    def retry_and_sweep_at_once(self) -> None:
        async def both() -> object:
            outcomes = await asyncio.gather(
                retry(self.store.jobs, "p", self.job_id, dispatcher=self.store.dispatcher),
                sweep(self.store.runtime),
                return_exceptions=True,
            )
            return outcomes[0]

        outcome = self.run(both())
        assert outcome is None or isinstance(outcome, Conflict | JobNotFound), outcome
        self.retried |= outcome is None

    @rule(chance=rarely)
    def delete(self, chance: int) -> None:
        if chance:
            return
        try:
            self.run(termination.delete_job(self.store.jobs, "p", self.job_id))
        except JobNotFound:
            assert self.deleted
        self.deleted = True

    @rule()
    def time_passes(self) -> None:
        self.run(self.store.set_job(self.job_id, rate_sample_at=db_now() - 60.0))

    @invariant()
    def everything_agrees(self) -> None:
        if not self.shard_ids:
            return
        self._check_moves()
        snapshot = self.run(DatabaseSnapshot.read(self.store.runtime.database, self.job_id))
        snapshot.check(_expected)
        assert snapshot.tokens_in_ledger >= self.seen_ledger, "the ledger lost rows"
        self.seen_ledger = snapshot.tokens_in_ledger
        if snapshot.job is None:
            assert self.deleted
            return
        self.seen_status = JobStatus(snapshot.job.status)
        outcomes = _outcomes(snapshot)
        if not self.deleted:
            if self.retried:  # failures may go, vectors may not
                self.seen_outcomes = {i: was for i, was in self.seen_outcomes.items() if isinstance(was, bytes)}
                self.seen_done = 0
            lost = {index for index, was in self.seen_outcomes.items() if outcomes.get(index) != was}
            assert not lost, f"outcomes of {lost} were changed or lost"
            self.seen_outcomes = outcomes
            self._check_what_a_poller_sees(snapshot.job, len(outcomes))
        self.retried = False

    def _check_what_a_poller_sees(self, job: Any, outcomes: int) -> None:
        done = job.completed + job.failed
        assert done == outcomes and done >= self.seen_done, "progress went back"
        assert job.version >= self.seen_version
        self.seen_done, self.seen_version = done, job.version
        if self.seen_status in (JobStatus.COMPLETED, JobStatus.COMPLETED_WITH_ERRORS):
            assert done == TOTAL
        row = SimpleNamespace(**job._mapping, now=job.created_at + 1.0, workers_live=False)
        body = job_object(cast("Any", row))
        assert (body["progress"] == 1.0) == (done == TOTAL)
        assert (body["waiting_on"] is None) or self.seen_status == JobStatus.IN_PROGRESS

    def _check_moves(self) -> None:
        """Every move since the last look, in the order in which they were made."""
        moves = self.run(moves_after(self.store, self.seen_moves))
        for seq, thing, before, after in moves:
            self.seen_moves = seq
            legal: Any = LEGAL_MOVES[JobStatus(before)] if thing == "job" else SHARD_MOVES[ShardState(before)]
            assert after in legal, f"a {thing} that was {before} became {after}"
            ended = before in FINISHED if thing == "job" else before == ShardState.DONE
            assert not ended or self.retried, f"a {thing} that was {before} rose again"

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
        self.resume()
        self.everything_agrees()
        for _ in range(12):
            for shard in range(len(self.shard_ids)):
                self.claim(shard)
                if self.held and self.held[-1].shard_id == self.shard_ids[shard]:
                    held = self.held[-1]
                    self.run(record(self.store.jobs, held, landed(held, route=self.store.routes[0])))
                self.lease_runs_out(shard)
            self.sweep()
            self.everything_agrees()
            if self.seen_status in FINISHED:
                return
        raise AssertionError(f"the job is {self.seen_status} for ever")

    def _notice_halves(self) -> None:
        """A shard that lost its workers was cut: its other half is there to be claimed too."""
        now = self.run(self.store.shard_ids(self.job_id))
        self.shard_ids += [shard_id for shard_id in now if shard_id not in self.shard_ids]

    def _any_claim(self, pick: int) -> ClaimedShard:
        return self.held[pick % len(self.held)]

    def _steer(self, verb: Any, where: set[JobStatus], *, may_refuse: bool = False, **parts: Any) -> bool:
        """Ask for something as a caller would: it is done where it may be, and refused where it may not."""
        try:
            self.run(verb(self.store.jobs, "p", self.job_id, **parts))
        except JobNotFound:
            assert self.deleted
        except Conflict:
            assert may_refuse or self.seen_status not in where
        else:
            assert self.seen_status in where
            return True
        return False

    def _record(self, held: ClaimedShard, parts: list[BatchOutcome]) -> None:
        fence, failed = self.run(self._fence_and_failed(held))
        self.run(record(self.store.jobs, held, parts))
        if fence is not None and fence != held.fence:
            assert self.run(self._fence_and_failed(held))[1] in (None, failed), "a stale worker failed an input"

    async def _fence_and_failed(self, held: ClaimedShard) -> tuple[int | None, int | None]:
        async with self.store.runtime.database.read() as connection:
            failed = (await connection.execute(select(Job.failed).where(Job.id == held.job_id))).scalar_one_or_none()
            fence = (
                await connection.execute(select(Shard.fence).where(Shard.id == held.shard_id))
            ).scalar_one_or_none()
        return fence, failed


def _outcomes(snapshot: DatabaseSnapshot) -> dict[int, bytes | str]:
    width = WIDTH * 4
    found: dict[int, bytes | str] = {row.index: row.code for row in snapshot.failures}
    for run in snapshot.runs:
        for row in range(run.count):
            found[run.first_index + row] = run.data[row * width : (row + 1) * width]
    return found


def _expected(indexes: Any) -> Matrix:
    return fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL)
