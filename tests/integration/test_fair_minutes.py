"""Three projects with equal demand, two slots, one quota: in every minute each has its share, give or take a tenth.

A simulation that does not depend on the machine: the database's clock is moved by hand, and whenever the quota has room
for a call, one of the shards that run makes it. Claims, releases, records and the choice of who gives way are those of
the product. A shard is most of a project's share of a minute, and the slots look about in any order.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import update

from engine.jobs.execution.preemption import choose_preemptor
from engine.jobs.execution.watch import POLL_EVERY_S, STARVED_AFTER_S
from engine.jobs.leasing import claim as claims
from engine.jobs.leasing.claim import ClaimedShard
from engine.jobs.recording.record_outcomes import record
from engine.jobs.scheduling import fair_share
from models.job import Job, Shard
from tests.integration.clocks import SetClock, settable_clock
from tests.integration.store import Store, landed
from tests.services import SqliteFiles, async_url

TICK_S = POLL_EVERY_S
INPUTS_PER_S = 80
SECONDS = 100
CALL_INPUTS = 40  # no scheduler shares more finely than by calls
SHARD = 1_200  # a project's share of a minute is 1,600
TOKENS = 50  # of an input


@dataclass
class Slot:
    held: ClaimedShard
    since_s: float
    waiting: list[int]


@pytest.fixture
async def simulated(sqlite_files: SqliteFiles, tmp_path: Path) -> AsyncIterator[tuple[Store, SetClock]]:
    url = sqlite_files.create(tmp_path)
    async with settable_clock(async_url(url).replace("sqlite:", "sqlite+aiosqlite:", 1)) as clock:
        store = Store.open(url, tmp_path, shard_inputs=SHARD)
        store.notifier.works = False
        yield store, clock
        await store.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("slots", "projects", "seed"), [(2, 3, 1), (2, 3, 2), (4, 3, 3)])
async def test_any_minute_is_shared_within_a_tenth(
    simulated: tuple[Store, SetClock], slots: int, projects: int, seed: int
) -> None:
    store, clock = simulated
    chance = random.Random(seed)
    jobs = [await store.submit(SHARD * 8, project=f"p{number}", tag=f"t{number}") for number in range(projects)]
    async with store.runtime.database.write() as connection:
        await connection.execute(update(Shard).values(tokens=TOKENS * SHARD))
        await connection.execute(update(Job).values(started_at=0.0))
    running: list[Slot | None] = [None] * slots
    had = {job_id: [0] for job_id in jobs}
    turn = 0
    for tick in range(int(SECONDS / TICK_S)):
        now_s = tick * TICK_S
        await clock.ahead(now_s)
        for number in chance.sample(range(slots), slots):
            running[number] = await look(store, running[number], now_s)
        due = round(INPUTS_PER_S * now_s) // CALL_INPUTS - sum(counts[-1] for counts in had.values()) // CALL_INPUTS
        callers = [slot for slot in running if slot is not None]
        turn += max(0, due)
        await bring(store, [callers[(turn - number) % len(callers)] for number in range(max(0, due))], had)
    minute = int(60 / TICK_S)
    for end in range(minute + int(10 / TICK_S), len(had[jobs[0]])):
        in_minute = [had[job_id][end] - had[job_id][end - minute] for job_id in jobs]
        fair = sum(in_minute) / projects
        assert all(abs(each - fair) <= 0.1 * fair for each in in_minute), (end * TICK_S, in_minute)


async def look(store: Store, slot: Slot | None, now_s: float) -> Slot | None:
    """A free slot takes the next shard; one that runs gives way where it would."""
    if slot is not None and slot.waiting:
        unsent = TOKENS * len(slot.waiting)
        async with store.runtime.database.read() as connection:
            positions, _ = await fair_share.watch(connection, [slot.held.shard_id], 8, STARVED_AFTER_S)
        held, ran_s = slot.held, now_s - slot.since_s
        preemptor = choose_preemptor(positions, held.shard_id, held.tokens, ran_s=ran_s, unsent_tokens=unsent)
        if preemptor is None:
            return slot
        new = await claims.claim(store.jobs, preemptor, "w")
        await claims.release(
            store.jobs, slot.held, delay_s=0, counts_as_attempt=False, reason="", waiting_on="fairness"
        )
        return None if new is None else Slot(new, now_s, new.open_positions())
    new = await claims.claim_next(store.jobs, "w")
    return None if new is None else Slot(new, now_s, new.open_positions())


async def bring(store: Store, callers: list[Slot], had: dict[str, list[int]]) -> None:
    """A call of each of them."""
    for counts in had.values():
        counts.append(counts[-1])
    for slot in callers:
        some = slot.waiting[:CALL_INPUTS]
        if some:
            slot.waiting = slot.waiting[len(some) :]
            await record(store.jobs, slot.held, landed(slot.held, some, route=store.routes[0], cut=len(some)))
            had[slot.held.job_id][-1] += len(some)
