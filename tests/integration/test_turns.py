"""Turns: whoever has had the fewest tokens is next, newcomers start where the line stands, and nobody saves up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import select, update

from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record_outcomes import record
from engine.jobs.scheduling.dispatch import MAX_DEFER_S
from models.base import db_now, new_id
from models.job import FairShare, JobStatus, Shard
from tests.integration.store import SHARD_INPUTS, Store, landed
from tests.running import dispatch, run_next_shard


@pytest.fixture
async def quiet(store: Store) -> Store:
    """A store whose notifier does not work, so that every due shard can be claimed, and none is announced."""
    store.notifier.works = False
    return store


async def submit(store: Store, shards: int, tokens: int, project: str = "p") -> str:
    """A job of so many shards, each estimated at so many tokens."""
    job_id = await store.submit(shards * SHARD_INPUTS, project=project, tag=new_id("tag"))
    async with store.runtime.database.write() as connection:
        await connection.execute(update(Shard).where(Shard.job_id == job_id).values(tokens=tokens))
    return job_id


async def claim_probe(store: Store) -> ClaimedShard | None:
    """What a worker claims for a message."""
    return await claims.claim_next(store.jobs, "w")


async def take_turns(store: Store, jobs: Mapping[str, str], count: int) -> str:
    """The names of the jobs whose turn it was, each shard run to its end."""
    by_id = {job_id: name for name, job_id in jobs.items()}
    taken = ""
    for _ in range(count):
        held = await claim_probe(store)
        assert held is not None
        await record(store.jobs, held, landed(held, route=store.routes[0]))
        taken += by_id[held.job_id]
    return taken


async def shares(store: Store) -> dict[str, Any]:
    async with store.runtime.database.read() as connection:
        return {row.project: row for row in (await connection.execute(select(*FairShare.__table__.columns))).all()}


async def test_jobs_of_a_project_share_by_tokens_not_by_shards(quiet: Store) -> None:
    jobs = {"a": await submit(quiet, 4, 300), "b": await submit(quiet, 12, 100)}
    taken = await take_turns(quiet, jobs, 12)
    assert Counter(taken) == {"a": 3, "b": 9}
    # And at any moment neither is ahead by more than a shard.
    for done in range(12):
        assert abs(taken[:done].count("a") * 300 - taken[:done].count("b") * 100) <= 300


@pytest.mark.parametrize(("spent", "of_victim"), [(True, 4), (False, 1)])
async def test_a_job_whose_every_visit_fails_takes_turns_with_other_projects(
    quiet: Store, spent: bool, of_victim: int
) -> None:
    """A visit that spends no attempt, as before an outage, costs no turn."""
    hostile = await submit(quiet, 8, 100, "hostile")
    await submit(quiet, 8, 100, "victim")
    taken = ""
    for _ in range(8):
        held = await claim_probe(quiet)
        assert held is not None
        if held.job_id == hostile:
            await claims.release(quiet.jobs, held, delay_s=60.0, counts_as_attempt=spent, reason="503", waiting_on=None)
        else:
            await record(quiet.jobs, held, landed(held, route=quiet.routes[0]))
        taken += "h" if held.job_id == hostile else "v"
    assert (taken.count("v") >= of_victim) if spent else (taken.count("v") <= of_victim), taken


async def test_a_job_that_got_nowhere_is_not_behind_for_ever(quiet: Store) -> None:
    """Its failed visits cost their turns, no more: once its calls succeed it has its share of the next ones."""
    jobs = {"h": await submit(quiet, 12, 100, "hostile"), "v": await submit(quiet, 12, 100, "victim")}
    for _ in range(4):
        held = await claim_probe(quiet)
        assert held is not None
        if held.job_id == jobs["h"]:
            await claims.release(quiet.jobs, held, delay_s=60.0, counts_as_attempt=True, reason="503", waiting_on=None)
        else:
            await record(quiet.jobs, held, landed(held, route=quiet.routes[0]))
    assert await take_turns(quiet, jobs, 8) in ("hv" * 4, "vh" * 4)


async def test_projects_share_by_tokens_however_many_jobs_they_have(quiet: Store) -> None:
    jobs = {name: await submit(quiet, 2, 100, "many") for name in "abcd"} | {"z": await submit(quiet, 8, 100, "one")}
    taken = await take_turns(quiet, jobs, 12)
    assert taken.count("z") == 6
    assert set(taken[:8]) == set("abcdz")


async def test_a_newcomer_starts_where_the_line_stands(quiet: Store) -> None:
    jobs = {"a": await submit(quiet, 20, 100), "b": await submit(quiet, 20, 100)}
    await take_turns(quiet, jobs, 10)
    jobs["c"] = await submit(quiet, 20, 100)
    following = await take_turns(quiet, jobs, 9)
    # It is served at once, and has no claim to what the others had before it came.
    assert "c" in following[:3] and following.count("c") in (3, 4)


async def test_who_was_away_saves_nothing_up(quiet: Store) -> None:
    jobs = {"a": await submit(quiet, 20, 100), "b": await submit(quiet, 20, 100), "x": await submit(quiet, 9, 100, "q")}
    await take_turns(quiet, jobs, 2)
    away = (jobs["a"], jobs["x"])
    for job_id in away:
        await quiet.set_job(job_id, status=JobStatus.PAUSED)
    await take_turns(quiet, jobs, 9)
    for job_id in away:
        await quiet.set_job(job_id, status=JobStatus.IN_PROGRESS)
    following = await take_turns(quiet, jobs, 12)
    assert following.count("x") in (6, 7)
    # At the most the one turn that began while it was away, and one for being the older.
    assert following.count("a") - following.count("b") <= 2


async def test_a_stream_of_small_jobs_leaves_a_large_one_its_share(quiet: Store) -> None:
    large = await submit(quiet, 20, 100)
    await take_turns(quiet, {"l": large}, 1)
    taken = Counter[str]()
    await submit(quiet, 1, 50)
    for _ in range(24):
        await submit(quiet, 1, 50)  # one more is always there
        held = await claim_probe(quiet)
        assert held is not None
        await record(quiet.jobs, held, landed(held, route=quiet.routes[0]))
        taken["large" if held.job_id == large else "small"] += 1
    assert taken["large"] >= 2


async def test_what_goes_back_undone_was_not_served(quiet: Store) -> None:
    job_id = await submit(quiet, 2, 100)
    held = await claim_probe(quiet)
    assert held is not None and held.tokens == 100
    assert (await quiet.job(job_id)).virtual_time == (await shares(quiet))["p"].virtual_time == 100
    await record(quiet.jobs, held, landed(held, range(4), route=quiet.routes[0]))
    await claims.release(quiet.jobs, held, delay_s=0.0, counts_as_attempt=False, reason="", waiting_on="fairness")
    job = await quiet.job(job_id)
    assert job.virtual_time == (await shares(quiet))["p"].virtual_time == 40
    assert (job.waiting_on, job.next_attempt_at) == ("fairness", None)
    again = await claim_probe(quiet)
    assert again is not None and (again.shard_id, again.tokens) == (held.shard_id, 60)
    job = await quiet.job(job_id)
    assert (job.virtual_time, job.waiting_on) == (100, None)


async def test_a_message_of_one_job_runs_the_shard_that_is_next(store: Store) -> None:
    large = await submit(store, 9, 100)
    assert await run_next_shard(store.runtime)
    # All messages so far were sent for the large job, and yet the small one goes before it.
    small = await submit(store, 1, 10)
    assert await run_next_shard(store.runtime)
    assert await store.status(small) == JobStatus.COMPLETED
    assert [shard.state for shard in await store.shards(large)] == ["done", *["queued"] * 8]
    while await run_next_shard(store.runtime):
        pass
    assert await store.status(large) == JobStatus.COMPLETED


@pytest.mark.parametrize("deadly", [{"worker_crashes": 3}, {"attempt": 8}], ids=["lost workers", "attempts"])
async def test_no_turn_is_of_a_shard_that_is_the_sweeps_to_halve_or_fail(quiet: Store, deadly: dict[str, int]) -> None:
    job_id = await submit(quiet, 2, 10)
    first, second = await quiet.shard_ids(job_id)
    await quiet.set_shard(first, **deadly)
    held = await claim_probe(quiet)
    assert held is not None and held.shard_id == second
    assert await claim_probe(quiet) is None


async def test_messages_too_many_change_nothing(store: Store) -> None:
    job_id = await submit(store, 1, 100)
    assert [await run_next_shard(store.runtime) for _ in range(3)] == [True, False, False]
    assert await store.status(job_id) == JobStatus.COMPLETED
    assert [shard.attempt for shard in await store.shards(job_id)] == [1]


@pytest.mark.parametrize("shards", [1, 6])
async def test_claims_at_once_take_different_shards(quiet: Store, shards: int) -> None:
    """Of one job, or of six jobs with one shard each: every worker that asks at the same moment gets one."""
    others = [quiet.another() for _ in range(3)]
    jobs = [await submit(quiet, 6 // shards, 100) for _ in range(shards)]
    stores = [quiet, *others, *others[:2]]
    claimed = await asyncio.gather(*(claims.claim_next(each.jobs, f"w{n}") for n, each in enumerate(stores)))
    assert {shard.job_id for shard in claimed if shard is not None} == set(jobs)
    assert len({shard.shard_id for shard in claimed if shard is not None}) == 6
    assert await claim_probe(quiet) is None
    for other in others:
        await other.close()


async def test_a_job_with_nothing_due_is_passed_over_until_it_has(quiet: Store) -> None:
    blocked, ready = await submit(quiet, 1, 100), await submit(quiet, 1, 100)
    [later] = await quiet.shard_ids(blocked)
    await quiet.set_shard(later, next_run_at=db_now() + 60.0)
    quiet.notifier.works = True
    assert await dispatch(quiet.runtime) == 1
    job = await quiet.job(blocked)
    assert 0 < job.not_before - job.created_at < MAX_DEFER_S + 5.0
    assert (await quiet.job(ready)).not_before is None
    held = await claim_probe(quiet)
    assert held is not None and held.job_id == ready
    await quiet.set_shard(later, next_run_at=db_now())
    assert await dispatch(quiet.runtime) == 0
    await quiet.set_job(blocked, not_before=db_now())
    assert await dispatch(quiet.runtime) == 1
    held = await claim_probe(quiet)
    assert held is not None and held.shard_id == later
