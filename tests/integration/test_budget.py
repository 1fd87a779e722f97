"""Budget: a job never costs more than its ceiling, however many workers run it and whoever of them is killed."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import update

from api.jobs.render import job_object
from engine.jobs.control import pause_resume
from engine.jobs.leasing.claim import remaining_tokens
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording import cost_limit
from engine.jobs.recording.record_outcomes import RATE_SAMPLE_S, record
from models.base import db_now, usd_text
from models.errors import Conflict, InvalidInput
from models.job import Job, JobStatus, ShardState
from providers.fake import fake_tokens, fake_vectors
from tests.integration.snapshot import OPEN, DatabaseSnapshot
from tests.integration.store import UPSTREAM_MODEL, WIDTH, Store, landed, text_of
from tests.integration.test_run import scripted
from tests.running import run_shard, sweep

PRICE_USD = Decimal("0.0123457") / 1_000_000  # of a token, as the store's configuration has it


def tokens_of(indexes: Collection[int]) -> int:
    return sum(fake_tokens(text_of("text", index)) for index in indexes)


async def limited(store: Store, count: int, max_cost_usd: Decimal) -> str:
    job_id = await store.submit(count)
    await store.set_job(job_id, max_cost_usd=max_cost_usd)
    return job_id


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    assert snapshot.job is not None
    assert snapshot.cost_in_ledger <= snapshot.job.max_cost_usd
    return snapshot


async def run_until_it_rests(store: Store, job_id: str) -> None:
    """Let two workers' shards at a time run until the job has ended or is paused."""
    async with asyncio.timeout(30):
        while await store.status(job_id) == JobStatus.IN_PROGRESS:
            ready = [shard.id for shard in await store.shards(job_id) if shard.state in OPEN]
            for shard_id in ready:
                await store.set_shard(shard_id, next_run_at=0.0)
            await asyncio.gather(*(run_shard(store.runtime, shard_id, "w") for shard_id in ready))


async def test_a_job_pauses_before_it_costs_more(store: Store) -> None:
    job_id = await limited(store, 45, tokens_of(range(20)) * PRICE_USD)
    await run_until_it_rests(store, job_id)
    snapshot = await checked(store, job_id)
    assert 10 < len(snapshot.with_vector) <= 20  # what is left covers no further input for sure
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert (body["status"], body["waiting_on"]) == ("paused", "budget")
    assert Decimal(body["max_cost_usd"]) == snapshot.job.max_cost_usd  # type: ignore[union-attr]
    assert {shard.attempt for shard in snapshot.shards if shard.state != ShardState.DONE} == {0}


async def test_a_shard_that_was_taken_in_vain_is_no_turn(store: Store) -> None:
    job_id = await limited(store, 45, tokens_of(range(20)) * PRICE_USD)
    while await store.status(job_id) == JobStatus.IN_PROGRESS:
        shard_id = next(shard.id for shard in await store.shards(job_id) if shard.state in OPEN)
        await store.set_shard(shard_id, next_run_at=0.0)
        await run_shard(store.runtime, shard_id, "w")
    done = [shard.tokens - remaining_tokens(shard) for shard in await store.shards(job_id)]
    assert (await store.job(job_id)).virtual_time == sum(done) > 0


async def test_a_higher_ceiling_lets_it_go_on(store: Store) -> None:
    job_id = await limited(store, 25, tokens_of(range(9)) * PRICE_USD)
    await run_until_it_rests(store, job_id)
    assert await store.status(job_id) == JobStatus.PAUSED
    with pytest.raises(InvalidInput):
        async with store.runtime.database.write() as connection:
            await cost_limit.set_max_cost(connection, job_id, Decimal("0.000000000001"))
    async with store.runtime.database.write() as connection:
        await cost_limit.set_max_cost(connection, job_id, Decimal(1))
    await store.set_job(job_id, status=JobStatus.IN_PROGRESS)
    await run_until_it_rests(store, job_id)
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_a_ceiling_that_is_never_reached_is_never_felt(store: Store) -> None:
    job_id = await limited(store, 45, Decimal("0.01"))
    await run_until_it_rests(store, job_id)
    snapshot = await checked(store, job_id)
    assert (await store.status(job_id), len(snapshot.with_vector)) == (JobStatus.COMPLETED, 45)
    assert [shard.attempt for shard in snapshot.shards] == [1] * 5


async def test_the_dead_hold_no_money(store: Store) -> None:
    """A worker takes all that is left and dies: until it is swept the others wait, then they go on."""
    job_id = await limited(store, 20, tokens_of(range(10)) * PRICE_USD)
    dead = await store.claim((await store.shard_ids(job_id))[0])
    await cost_limit.reserve(store.jobs, dead, store.runtime.alias("test/8"), cost_limit.SpendReservation())
    second = (await store.shard_ids(job_id))[1]
    await run_shard(store.runtime, second, "w")
    assert (await checked(store, job_id)).with_vector == []
    assert await store.status(job_id) == JobStatus.IN_PROGRESS
    await store.expire_lease(dead.shard_id)
    await sweep(store.runtime)
    await store.set_shard(second, next_run_at=0.0)
    await run_shard(store.runtime, second, "w")
    assert (await checked(store, job_id)).with_vector


async def test_a_late_result_is_taken_as_far_as_the_ceiling_goes(store: Store) -> None:
    """A worker that was frozen brings what it paid for, after others have spent the money: that would be too much."""
    job_id = await limited(store, 20, tokens_of(range(10)) * PRICE_USD)
    frozen, other = await store.claim_all(job_id)
    await cost_limit.reserve(store.jobs, frozen, store.runtime.alias("test/8"), cost_limit.SpendReservation())
    await store.expire_lease(frozen.shard_id)
    await sweep(store.runtime)
    await cost_limit.reserve(store.jobs, other, store.runtime.alias("test/8"), cost_limit.SpendReservation())
    await record(store.jobs, other, landed(other, [0, 1, 2, 3, 4], route=store.routes[0]))
    for part in landed(frozen, route=store.routes[0], cut=1):
        await record(store.jobs, frozen, [part])
    assert (await checked(store, job_id)).with_vector


@pytest.mark.parametrize("seed", range(2))
async def test_never_more_however_many_and_whoever_dies(database_url: str, tmp_path: Path, seed: int) -> None:
    """Workers side by side, refused inputs, ledger rounding, kills at any moment: the ceiling stands at every look."""
    chance = random.Random(seed)
    store = scripted(database_url, tmp_path, '{when = {contains = "number 13 "}, do = {status = 400}}')
    others = [store.another() for _ in range(2)]
    count = chance.randrange(40, 60)
    job_id = await limited(store, count, tokens_of(range(count)) * PRICE_USD * chance.randrange(20, 120) / 100)
    for _ in range(8):
        if await store.status(job_id) != JobStatus.IN_PROGRESS:
            break
        running = []
        for shard in await store.shards(job_id):
            if shard.state in OPEN:
                await store.set_shard(shard.id, next_run_at=0.0)
                running.append(asyncio.create_task(run_shard(chance.choice([store, *others]).runtime, shard.id, "w")))
        dying = chance.sample(running, len(running) // 3)
        await asyncio.sleep(chance.random() / 50)
        for task in dying:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await checked(store, job_id)
    snapshot = await checked(store, job_id)
    assert snapshot.job is not None
    # Not for less than what a few runs side by side set aside: an input and a call of ours each.
    if snapshot.job.status == JobStatus.PAUSED:
        assert snapshot.job.max_cost_usd - snapshot.job.cost_usd - snapshot.job.ambiguous_cost_usd < 4 * 65 * PRICE_USD
    for each in (store, *others):
        await each.close()


@pytest.mark.parametrize("given", ["0", "-1", "NaN", "inf", "1e9", "", "ten", "1_0", 0, 1e-13, "0.0000000000001"])
def test_no_ceiling(given: str | float) -> None:
    with pytest.raises(InvalidInput) as caught:
        cost_limit.parse_max_cost(given)
    assert caught.value.param == "max_cost_usd"


@pytest.mark.parametrize(("given", "meant"), [("0.10", "0.1"), (5, "5"), (0.1, "0.1"), (1e-7, "0.0000001")])
def test_a_ceiling(given: str | float, meant: str) -> None:
    assert cost_limit.parse_max_cost(given) == Decimal(meant)


async def test_a_ceiling_that_cut_off_calls_may_have_passed_is_named_at_a_resume(store: Store) -> None:
    job_id = await limited(store, 20, tokens_of(range(10)) * PRICE_USD)
    async with store.runtime.database.write() as connection:
        values = {"status": JobStatus.PAUSED, "waiting_on": "budget", "ambiguous_cost_usd": Decimal("0.5")}
        await connection.execute(update(Job).where(Job.id == job_id).values(values))
    with pytest.raises(Conflict, match=r"may have cost 0\.5 already, 0\.5 of it .* higher max_cost_usd"):
        await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    assert await store.status(job_id) == JobStatus.PAUSED
    await pause_resume.resume(store.jobs, "p", job_id, Decimal(1), dispatcher=store.dispatcher)
    assert await store.status(job_id) == JobStatus.IN_PROGRESS


async def test_a_resume_without_a_higher_ceiling_is_refused_and_says_what_helps(store: Store) -> None:
    """Something is left of the ceiling, but not enough for the next call: the job would pause again at once."""
    job_id = await limited(store, 45, tokens_of(range(20)) * PRICE_USD)
    await run_until_it_rests(store, job_id)
    job = await store.job(job_id)
    assert job.cost_usd < job.max_cost_usd
    spent, ceiling = usd_text(job.cost_usd), usd_text(job.max_cost_usd)
    with pytest.raises(Conflict) as caught:
        await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    assert not caught.value.should_retry
    assert all(word in caught.value.message for word in (spent, ceiling, "higher max_cost_usd"))
    with pytest.raises(InvalidInput, match=f"Send more than {re.escape(ceiling)}"):
        await pause_resume.resume(store.jobs, "p", job_id, job.max_cost_usd, dispatcher=store.dispatcher)
    body = job_object(await get_job(store.jobs, "p", job_id))
    assert (body["status"], body["waiting_on"], body["max_cost_usd"]) == ("paused", "budget", ceiling)
    await pause_resume.resume(store.jobs, "p", job_id, Decimal(1), dispatcher=store.dispatcher)
    await run_until_it_rests(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_a_caller_who_paused_a_job_may_resume_it_under_its_ceiling_or_a_lower_one(store: Store) -> None:
    for ceiling in (None, Decimal("0.5"), Decimal("0.25")):
        job_id = await limited(store, 10, Decimal("0.5"))
        await pause_resume.pause(store.jobs, "p", job_id)
        await pause_resume.resume(store.jobs, "p", job_id, ceiling, dispatcher=store.dispatcher)
        assert await store.status(job_id) == JobStatus.IN_PROGRESS


async def test_a_job_says_that_it_waits_for_money_that_others_of_its_shards_hold(store: Store) -> None:
    job_id = await limited(store, 20, tokens_of(range(10)) * PRICE_USD)
    dead = await store.claim((await store.shard_ids(job_id))[0])
    await cost_limit.reserve(store.jobs, dead, store.runtime.alias("test/8"), cost_limit.SpendReservation())
    second = (await store.shard_ids(job_id))[1]

    async def waiting_on() -> tuple[str | None, int]:
        await store.set_shard(second, next_run_at=0.0)
        await run_shard(store.runtime, second, "w")
        return job_object(await get_job(store.jobs, "p", job_id))["waiting_on"], (await store.job(job_id)).version

    assert (await waiting_on())[0] is None  # the first shard has only just begun: work goes on
    await store.set_job(job_id, started_at=db_now() - 2 * RATE_SAMPLE_S - 1.0)
    reason, version = await waiting_on()
    assert reason == "budget" and await store.status(job_id) == JobStatus.IN_PROGRESS
    assert await waiting_on() == ("budget", version)  # said once, however often the shard is given back
    await store.expire_lease(dead.shard_id)
    await sweep(store.runtime)
    assert (await waiting_on())[0] != "budget" or await store.status(job_id) == JobStatus.PAUSED
    assert (await checked(store, job_id)).with_vector


async def test_a_job_that_waits_for_something_else_keeps_saying_so(store: Store) -> None:
    job_id = await limited(store, 20, tokens_of(range(10)) * PRICE_USD)
    first, second = await store.claim_all(job_id)
    await cost_limit.reserve(store.jobs, first, store.runtime.alias("test/8"), cost_limit.SpendReservation())
    await store.set_job(job_id, started_at=db_now() - 100.0, waiting_on="provider")
    await cost_limit.release_or_pause(store.jobs, second, Decimal(1))
    assert (await store.job(job_id)).waiting_on == "provider"


def test_quiet_is_longer_than_two_marks() -> None:
    assert cost_limit.QUIET_S >= 2 * RATE_SAMPLE_S == 30.0
