"""Plans: what runs all the time is answered from indexes, and costs the same with a thousand jobs as with a million.

EMBEDMILL_TEST_PLANS=bench/results keeps them there, to be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text, update

from engine.jobs.leasing import claim as claims
from engine.jobs.reading import job_rows
from engine.jobs.recording.record_outcomes import record
from engine.jobs.scheduling import fair_share
from engine.storage.database_gauges import Gauges
from models.base import Base, db_now, new_id
from models.job import Job, JobStatus, ShardInputs, ShardState
from tests.integration.store import Store, landed
from tests.running import dispatch, sweep

JOBS = 1500  # of each kind; fewer, and PostgreSQL rightly reads the whole table
BIG = "jobs|shards|shard_inputs|vectors|input_errors|usage|idempotency_keys"


@pytest.fixture
async def crowded(store: Store) -> AsyncIterator[Store]:
    """A database with many jobs that wait, many that wait for a later moment, and many that have ended."""
    store.notifier.works = False
    like = dict((await store.job(await store.submit()))._mapping)
    jobs: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    keys: list[dict[str, Any]] = []
    [shard] = await store.shards(like["id"])
    async with store.runtime.database.read() as connection:
        corpus = (await connection.execute(select(ShardInputs.inputs))).scalar_one()
    later = like["created_at"] + 3600
    kinds: dict[str, dict[str, Any]] = {
        "waiting": {},
        "later": {"not_before": later},
        "ended": {"status": "completed"},
    }
    for kind, values in kinds.items():
        for number in range(JOBS):
            job_id, shard_id = new_id("job"), new_id("shard")
            ended = kind == "ended"
            jobs.append(like | values | {"id": job_id, "project": f"p{number % 7}", "open_shards": int(not ended)})
            state = ShardState.DONE if ended else ShardState.QUEUED
            due = {"next_run_at": later} if kind == "later" else {}
            shards.append(dict(shard._mapping) | {"id": shard_id, "job_id": job_id, "state": state} | due)
            inputs.append({"shard_id": shard_id, "inputs": corpus})
            keys.append({"project": "p", "key": job_id, "job_id": job_id, "expires_at": later})
    async with store.runtime.database.write() as connection:
        for name, rows in {"jobs": jobs, "shards": shards, "shard_inputs": inputs, "idempotency_keys": keys}.items():
            await connection.execute(insert(Base.metadata.tables[name]), rows)
        await connection.execute(update(Job).where(Job.status == "completed").values(finished_at=db_now()))
        await connection.execute(text("analyze"))
    yield store


@contextmanager
def statements(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """What is asked of the database within the block."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "WITH")):
            asked.append((statement, parameters))

    database = store.runtime.database
    engines = {id(each.sync_engine): each.sync_engine for each in (database._reads, database._writes)}
    for engine in engines.values():
        event.listen(engine, "before_cursor_execute", note)
    yield asked
    for engine in engines.values():
        event.remove(engine, "before_cursor_execute", note)


async def plan_of(store: Store, statement: str, parameters: Any) -> str:
    explain = "EXPLAIN QUERY PLAN " if store.runtime.database.is_sqlite else "EXPLAIN "
    async with store.runtime.database.write() as connection:
        rows = (await connection.exec_driver_sql(explain + statement, parameters)).all()
        await connection.rollback()
    return "\n".join(str(row[-1]) for row in rows)


def reads_it_all(plan: str) -> str | None:
    """The line of a plan that reads a whole large table, or a whole index of it; or sorts many rows."""
    for line in plan.splitlines():
        if re.search(rf"Seq Scan on ({BIG})|^SCAN ({BIG})", line):
            return line
        if (sort := re.search(r"\bSort .*rows=(\d+)", line)) and int(sort[1]) > 100:
            return line
    return None


async def one_round(store: Store) -> None:
    """A dispatch, a look about, a claim, a record, a sweep: what happens all the time."""
    await dispatch(store.runtime)
    held = await claims.claim_next(store.jobs, "w")
    assert held is not None
    async with store.runtime.database.read() as connection:
        await fair_share.starved_shards(connection, 8, 0.0)
        await fair_share.watch(connection, [held.shard_id], 8, 0.0)
    await record(store.jobs, held, landed(held, route=store.routes[0]))
    await sweep(store.runtime)


async def test_nothing_that_runs_all_the_time_reads_all_jobs(crowded: Store) -> None:
    crowded.notifier.works = True
    with statements(crowded) as asked:
        await one_round(crowded)
    assert len(asked) > 10
    plans: dict[str, str] = {}
    for statement, parameters in dict.fromkeys((s, repr(p)) for s, p in asked):
        given = next(p for s, p in asked if (s, repr(p)) == (statement, parameters))
        plan = await plan_of(crowded, statement, given)
        assert reads_it_all(plan) is None, f"{statement}\n\n{plan}"
        plans[statement] = plan
    if folder := os.environ.get("EMBEDMILL_TEST_PLANS"):
        keep(plans, Path(folder) / f"plans-{'sqlite' if crowded.runtime.database.is_sqlite else 'postgres'}.md")


def keep(plans: dict[str, str], path: Path) -> None:
    lines = [
        "# Query plans of one round",
        "",
        f"Dispatch, look about, claim, record and sweep, with {3 * JOBS:,} jobs.",
    ]
    for statement, plan in plans.items():
        lines += ["", "```sql", statement, "```", "", "```", plan, "```"]
    path.write_text("\n".join([*lines, ""]))


async def test_gauges_do_not_count_ended_jobs_each_time(crowded: Store) -> None:
    gauges = Gauges(crowded.runtime.database, worker_seen_s=45.0)
    await gauges.refresh()
    gauges._read_at -= 10.0
    with statements(crowded) as asked:
        await gauges.refresh()
    assert asked and not any(JobStatus.COMPLETED in repr(parameters) for _, parameters in asked)


async def test_a_list_by_status_reads_jobs_of_that_status_only(crowded: Store) -> None:
    """Few have failed: nobody walks through all jobs of the project to find them."""
    async with crowded.runtime.database.write() as connection:
        some = select(Job.id).where(Job.project == "p1", Job.status == "completed").limit(20)
        ids = list((await connection.execute(some)).scalars())
        await connection.execute(update(Job).where(Job.id.in_(ids)).values(status="failed"))
        await connection.execute(text("analyze"))
    with statements(crowded) as asked:
        await job_rows.list_jobs(crowded.runtime.store, "p1", limit=20, after_id=None, status="failed")
        await job_rows.list_jobs(crowded.runtime.store, "p1", limit=20, after_id=new_id("job"), status="failed")
    for statement, parameters in asked:
        plan = await plan_of(crowded, statement, parameters)
        assert reads_it_all(plan) is None and "ix_jobs_project_id" not in plan, plan
        # PostgreSQL may take another index that leads to the failed ones.
        assert "ix_jobs_project_status_id" in plan or not crowded.runtime.database.is_sqlite, plan
