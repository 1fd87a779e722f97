"""Budget and kill -9: what is known to be billed and what may be never come to more than the ceiling together."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import update

from engine.jobs.recording.run_calls import RunCalls
from models.base import db_now
from models.embedding import Batch, Call, Options
from models.job import JobStatus, Shard, ShardState
from models.usage import UsageRecord
from tests.integration.snapshot import OPEN, DatabaseSnapshot, total_usd
from tests.integration.store import Store, landed
from tests.integration.test_budget import PRICE_USD, limited
from tests.integration.test_run import checked, scripted
from tests.running import sweep

# A worker process of its own: it opens the same database, runs one shard, and dies where the failpoint says.
WORKER = """
import asyncio, sys
from pathlib import Path
from engine.config.settings import Settings
from tests.running import run_shard
from engine.queue import worker_heartbeats
from engine.runtime import Runtime

async def work(place, folder, url, shard_id, concurrency):
    settings = Settings(data_dir=Path(folder), database_url=url, config=folder + "/embedmill.toml", shard_inputs=20,
                        batch_inputs=4, shard_concurrency=int(concurrency), failpoints=place)
    runtime = Runtime.open(settings)
    await run_shard(runtime, shard_id, worker_heartbeats.process_name())
    await runtime.close()

asyncio.run(work(*sys.argv[1:]))
"""
# The most that one input of the corpus can be: "text number 19 xxxxxx" and 16 tokens around it.
MOST_OF_ONE = 37


def run_and_die(place: str, folder: Path, url: str, shard_id: str, *, concurrency: int) -> int:
    command = [sys.executable, "-c", WORKER, place, str(folder), url, shard_id, str(concurrency)]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    print(done.returncode, done.stderr[-1500:])
    return done.returncode


async def bill(store: Store, job_id: str) -> Decimal:
    """Delivered, wasted and ambiguous together, which must not pass the ceiling."""
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    total = total_usd(snapshot.ledger)
    assert snapshot.job is not None
    assert total == snapshot.job.cost_usd + snapshot.job.ambiguous_cost_usd
    assert total <= snapshot.job.max_cost_usd, (total, snapshot.job.max_cost_usd)
    return total


async def kill_until_it_rests(store: Store, folder: Path, job_id: str, place: str, *, concurrency: int = 2) -> int:
    """Run the job in processes that are killed at this place, until it is paused or has ended; how many were."""
    kills = 0
    for _ in range(8):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        async with store.runtime.database.write() as connection:
            due = update(Shard).where(Shard.job_id == job_id, Shard.state.in_(OPEN[:2]))
            await connection.execute(due.values(next_run_at=db_now() - 1, attempt=0, worker_crashes=0))
        shard_id = next(shard.id for shard in await store.shards(job_id) if shard.state in OPEN)
        url = store.runtime.settings.database_url
        kills += run_and_die(place, folder, url, shard_id, concurrency=concurrency) == -9
        await store.set_shard(shard_id, lease_until=db_now() - 1)
        await sweep(store.runtime)
        await bill(store, job_id)
    return kills


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "place",
    [
        "after_upstream_before_commit=kill,skip=4",  # five answers in memory, paid for one after another
        "after_upstream_before_commit=kill",
        "mid_commit=kill",
        "after_commit=kill",  # recorded, and noted as under way still
        "before_upstream=kill,skip=3",
    ],
)
async def test_whoever_is_killed_the_bill_stays_below_the_ceiling(
    database_url: str, tmp_path: Path, place: str
) -> None:
    store = scripted(database_url, tmp_path, shard_inputs=20)
    job_id = await limited(store, 20, 9 * MOST_OF_ONE * PRICE_USD)  # all of it costs less, at the most more than twice
    kills = await kill_until_it_rests(store, tmp_path, job_id, place)
    assert kills >= 1
    await store.close()


@pytest.mark.timeout(180)
async def test_replies_that_are_billed_in_vain_are_covered_too(database_url: str, tmp_path: Path) -> None:
    """Each is paid for at its true price, and noted as under way at the most that it can cost."""
    store = scripted(database_url, tmp_path, '{times = 1, do = {reply = "short"}}', shard_inputs=20)
    job_id = await limited(store, 20, 14 * MOST_OF_ONE * PRICE_USD)
    assert await kill_until_it_rests(store, tmp_path, job_id, "after_upstream_before_commit=kill", concurrency=1)
    await store.close()


@pytest.mark.timeout(180)
async def test_a_call_whose_result_was_recorded_is_not_ambiguous_too(database_url: str, tmp_path: Path) -> None:
    store = scripted(database_url, tmp_path, shard_inputs=20)
    job_id = await store.submit(20)
    [shard_id] = await store.shard_ids(job_id)
    url = store.runtime.settings.database_url
    assert run_and_die("after_commit=kill", tmp_path, url, shard_id, concurrency=8) == -9
    await store.set_shard(shard_id, lease_until=db_now() - 1)
    await sweep(store.runtime)
    snapshot = await checked(store, job_id)
    job = await store.job(job_id)
    assert (job.completed, job.ambiguous_calls, job.status) == (20, 0, JobStatus.COMPLETED)
    assert [shard.state for shard in snapshot.shards] == [ShardState.DONE]
    await store.close()


async def test_a_call_of_ours_is_not_taken_for_the_call_that_brought_the_first_input(store: Store) -> None:
    """It was: then its end was that of a call nobody knew, and the run broke off."""
    job_id = await store.submit()
    [held] = await store.claim_all(job_id)
    under_way = RunCalls(store.runtime.journal, held)
    route = store.routes[0]
    under_way.sending(Batch(["a", "b"], [0, 1], 2, 8, Options()), route)
    ours = under_way.sending(Batch(["embedmill"], [-1], 2, 8, Options()), route)
    under_way.mark_durable(landed(held, [0, 1], route=route))
    assert under_way.inputs == 1  # of ours
    wasted = Call("one", "m", True, 200, 1.0, 2.0, id=ours, wasted=True, inputs=1)
    under_way.failed(ours, wasted)
    assert under_way.without_results() == [wasted]
    await under_way.record_rest(store.runtime.database)
    under_way.failed(ours, None)  # heard of after its run has written it down
    under_way.failed(ours, wasted)
    assert under_way.without_results() == [] and await store.count(UsageRecord) == 1
