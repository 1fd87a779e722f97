"""Ambiguous calls: whatever was sent and never answered is written down, once, and the job says so."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

from sqlalchemy import select

from api.jobs.render import job_object
from engine.jobs.reading.job_rows import get_job
from engine.jobs.recording import calls_without_results
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.run_calls import RunCalls
from models.embedding import Batch, Call, Options
from models.job import AmbiguousCall
from models.usage import UsageKind, UsageRecord
from tests.integration.snapshot import DatabaseSnapshot, total_usd
from tests.integration.store import MODEL, UPSTREAM_MODEL, Store
from tests.integration.test_run import scripted
from tests.running import run_shard


async def told(store: Store, job_id: str, kind: str = "ambiguous") -> dict[str, object]:
    """What the job says of such calls; its ledger says the same."""
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check()
    rows = snapshot.of_kind(UsageKind(kind))
    shown: dict[str, object] = job_object(await get_job(store.jobs, "p", job_id))[kind]
    cost_usd = shown.pop("cost_usd")
    assert shown.pop("tokens") == sum(row.prompt_tokens for row in rows)
    assert Decimal(str(cost_usd)) == total_usd(rows)
    return shown


async def test_a_call_that_was_never_answered_is_written_down(database_url: str, tmp_path: Path) -> None:
    """The first try of each call is cut off, the second is answered: the job is complete, and honest."""
    store = scripted(database_url, tmp_path, '{when = {call = 1}, do = {fault = "close"}}')
    job_id = await store.submit(4)
    await run_shard(store.runtime, (await store.shard_ids(job_id))[0], "w")
    async with store.runtime.database.read() as connection:
        rows = (await connection.execute(select(*AmbiguousCall.__table__.columns))).all()
    assert await store.status(job_id) == "completed"
    assert await told(store, job_id) == {"calls": len(rows), "inputs": 4 * len(rows)}
    assert [(row.job_id, row.upstream_model, row.inputs, row.reason) for row in rows] == [
        (job_id, UPSTREAM_MODEL, 4, "upstream_unavailable")
    ]
    await store.close()


async def test_each_call_is_written_down_once(store: Store) -> None:
    job_id = await store.submit(4)
    [held] = await store.claim_all(job_id)
    run, route = RunCalls(store.runtime.journal, held), store.routes[0]
    ids = [run.sending(Batch(["a"] * inputs, list(range(inputs)), inputs, 8, Options()), route) for inputs in (3, 1, 2)]
    calls = [
        Call("one", "m", False, None, 1.0, 2.0, "upstream_timeout", ambiguous=True, inputs=inputs, id=call_id)
        for inputs, call_id in zip((3, 1), ids, strict=False)
    ]
    for call in calls:
        run.failed(call.id, call)
    run.failed(ids[2], None)  # it was not billed
    for _ in range(2):
        await record(store.jobs, held, [], calls=run.without_results())
    run.mark_recorded(calls)
    await run.record_rest(store.runtime.database)
    async with store.runtime.database.read() as connection:
        rows = (await connection.execute(select(*UsageRecord.__table__.columns))).all()
    assert {(row.id, row.kind, row.code, row.key_id, row.alias, row.end_user) for row in rows} == {
        (call.id, "ambiguous", "upstream_timeout", "key", MODEL, "u") for call in calls
    }
    assert run.inputs == 0
    async with store.runtime.database.write() as connection:  # as after a commit whose answer was lost
        about = {"project": "p", "job_id": job_id, "shard_id": held.shard_id}
        assert await calls_without_results.insert_calls(store.runtime.database, connection, **about, calls=calls) == []
    assert await told(store, job_id) == {"calls": 2, "inputs": 4}
