"""Which events jobs send: one for each end and each pause, in the transaction that makes it, and none for nobody."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.corpus.lines import ParsedRecords
from engine.jobs.control import pause_resume, retry, termination
from engine.jobs.maintenance import sweep
from engine.jobs.recording.cost_limit import release_or_pause
from engine.jobs.recording.record_outcomes import record
from engine.webhooks import job_events
from engine.webhooks.endpoints import attach_webhook, delete_endpoint
from engine.webhooks.job_events import record_job_event, report_progress
from engine.webhooks.targets import CheckedUrl
from models.base import db_now
from models.errors import InvalidInput
from models.job import Job, JobStatus
from models.webhook import EventType, WebhookEndpoint, WebhookEvent
from tests.integration.store import Store, landed, refused
from tests.integration.webhooks import all_deliveries, events_of, subscribe

URL = "https://receiver.example/"


async def types_of(store: Store, job_id: str) -> list[str]:
    return [event.type for event in await events_of(store, job_id)]


async def finish(store: Store, job_id: str, *, bad: int = 0) -> None:
    for shard in await store.claim_all(job_id):
        parts = refused(shard, range(bad)) + landed(shard, range(bad, shard.count), route=store.routes[0])
        await record(store.jobs, shard, parts)


@pytest.mark.parametrize(
    ("bad", "event_type", "status"),
    [
        (0, EventType.JOB_COMPLETED, "completed"),
        (3, EventType.JOB_COMPLETED, "completed_with_errors"),
        (10, EventType.JOB_FAILED, "failed"),
    ],
)
async def test_the_record_of_the_last_shard_sends_one_event(
    store: Store, bad: int, event_type: EventType, status: str
) -> None:
    endpoint = await subscribe(store, URL)
    job_id = await store.submit(30)
    shards = await store.claim_all(job_id)
    for shard in shards[:-1]:
        await record(
            store.jobs, shard, refused(shard, range(bad)) + landed(shard, range(bad, 10), route=store.routes[0])
        )
        assert await types_of(store, job_id) == []
    last = refused(shards[-1], range(bad)) + landed(shards[-1], range(bad, 10), route=store.routes[0])
    await record(store.jobs, shards[-1], last)
    await record(store.jobs, shards[-1], last)  # the message is delivered twice
    await sweep.finish_jobs(store.jobs)
    [event] = await events_of(store, job_id)
    assert (event.type, event.data) == (event_type, {"id": job_id, "status": status})
    [delivery] = await all_deliveries(store)
    assert (delivery.event_id, delivery.endpoint_id) == (event.id, endpoint.id)
    assert (delivery.state, delivery.attempts) == ("pending", 0)


async def test_shards_that_close_at_the_same_time_send_one_event(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(60)
    shards = await store.claim_all(job_id)
    await asyncio.gather(
        *(record(store.jobs, shard, landed(shard, route=store.routes[0])) for shard in shards),
        sweep.finish_jobs(store.jobs),
    )
    assert await types_of(store, job_id) == [EventType.JOB_COMPLETED]


async def test_a_job_that_is_retried_and_ends_again_sends_another_event(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(10)
    await finish(store, job_id, bad=2)
    await retry.retry(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await finish(store, job_id)
    first, second = await events_of(store, job_id)
    assert (first.data["status"], second.data["status"]) == ("completed_with_errors", "completed")
    assert first.id != second.id


async def test_an_event_of_one_end_is_inserted_once_however_often_it_is_reported(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(10)
    await finish(store, job_id)
    for _ in range(2):
        async with store.database.write() as connection:
            await record_job_event(connection, job_id)
    assert await types_of(store, job_id) == [EventType.JOB_COMPLETED]


async def test_a_cancel_with_running_shards_sends_its_event_when_they_are_through(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(30)
    shard = await store.claim((await store.shard_ids(job_id))[0])
    await termination.cancel(store.jobs, "p", job_id)
    assert await types_of(store, job_id) == []
    await record(store.jobs, shard, landed(shard, route=store.routes[0]))
    assert await types_of(store, job_id) == [EventType.JOB_CANCELLED]
    await termination.cancel(store.jobs, "p", job_id)
    assert await types_of(store, job_id) == [EventType.JOB_CANCELLED]


@pytest.mark.parametrize("how", ["idle", "dropped claim", "deleted"])
async def test_other_ways_to_be_cancelled(store: Store, how: str) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(30)
    shard = await store.claim((await store.shard_ids(job_id))[0]) if how == "dropped claim" else None
    if how == "deleted":
        await termination.delete_job(store.jobs, "p", job_id)
    else:
        await termination.cancel(store.jobs, "p", job_id)
    if shard is not None:
        await termination.drop_claim(store.jobs, shard)
    await sweep.finish_jobs(store.jobs)
    assert await types_of(store, job_id) == [EventType.JOB_CANCELLED]


async def test_the_deadline_sends_expired(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(30)
    await store.set_job(job_id, expires_at=db_now() - 1.0)
    await sweep.end_overdue_jobs(store.jobs)
    await sweep.end_overdue_jobs(store.jobs)
    assert await types_of(store, job_id) == [EventType.JOB_EXPIRED]


async def test_the_sweep_ends_what_a_crash_left_and_sends_the_event(store: Store) -> None:
    await subscribe(store, URL)
    job_ids = [await store.submit(10, tag=f"{number}") for number in range(3)]
    for job_id in job_ids:
        shard = await store.claim((await store.shard_ids(job_id))[0])
        await store.set_job(job_id, total=None)  # not known yet when its last shard closes
        await record(store.jobs, shard, landed(shard, route=store.routes[0]))
        await store.set_job(job_id, total=10)
        assert await types_of(store, job_id) == []
    await sweep.finish_jobs(store.jobs)
    for job_id in job_ids:
        assert await types_of(store, job_id) == [EventType.JOB_COMPLETED]


async def test_an_upload_that_ends_after_its_last_shard_sends_the_event(store: Store) -> None:
    await subscribe(store, URL)
    async with store.receiving() as intake:
        lines = ParsedRecords()
        for index in range(10):
            lines.add(f"text {index}")
        await intake.add(lines)
        shard = await store.claim((await store.shard_ids(intake.job_id))[0])
        await record(store.jobs, shard, landed(shard, route=store.routes[0]))
        assert await types_of(store, intake.job_id) == []
        await intake.finish(b"fingerprint")
    assert await store.status(intake.job_id) == JobStatus.COMPLETED
    assert await types_of(store, intake.job_id) == [EventType.JOB_COMPLETED]


async def test_an_upload_that_is_given_up_sends_failed(store: Store) -> None:
    await subscribe(store, URL)
    with pytest.raises(InvalidInput):
        async with store.receiving() as intake:
            lines = ParsedRecords()
            for index in range(10):
                lines.add(f"text {index}")
            await intake.add(lines)
            raise InvalidInput("the rest of the corpus is no JSON: correct it")
    assert await types_of(store, intake.job_id) == [EventType.JOB_FAILED]


async def test_each_pause_sends_an_event(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(30)
    await pause_resume.pause(store.jobs, "p", job_id)
    await pause_resume.pause(store.jobs, "p", job_id)
    [event] = await events_of(store, job_id)
    assert event.data == {"id": job_id, "status": "paused", "waiting_on": None}
    await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await pause_resume.pause(store.jobs, "p", job_id)
    assert await types_of(store, job_id) == [EventType.JOB_PAUSED] * 2
    await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    shards = await store.claim_all(job_id)
    await pause_resume.pause(store.jobs, "p", job_id)
    for shard in shards:  # what was in flight is recorded, and is the last of it
        await record(store.jobs, shard, landed(shard, route=store.routes[0]))
    assert await types_of(store, job_id) == [*[EventType.JOB_PAUSED] * 3, EventType.JOB_COMPLETED]


async def test_a_budget_that_is_exhausted_pauses_with_an_event(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(10)
    await store.set_job(job_id, max_cost_usd=Decimal("0.000001"))
    shard = await store.claim((await store.shard_ids(job_id))[0])
    await release_or_pause(store.jobs, shard, Decimal(1))
    [event] = await events_of(store, job_id)
    assert (event.type, event.data["waiting_on"]) == (EventType.JOB_PAUSED, "budget")


async def test_only_subscribers_of_the_project_and_of_the_type_are_sent_an_event(store: Store) -> None:
    mine = await subscribe(store, URL, events=[EventType.JOB_COMPLETED])
    await subscribe(store, URL, events=[EventType.JOB_FAILED, EventType.BATCH_COMPLETED])
    await subscribe(store, URL, project="other")
    disabled = await subscribe(store, URL)
    async with store.database.write() as connection:
        await connection.execute(
            update(WebhookEndpoint).where(WebhookEndpoint.id == disabled.id).values(disabled_at=db_now())
        )
    job_id, other_job_id = await store.submit(10), await store.submit(10, tag="other")
    async with store.database.write() as connection:
        attached = await attach_webhook(connection, project="p", job_id=job_id, url=CheckedUrl(URL))
        await attach_webhook(connection, project="p", job_id=other_job_id, url=CheckedUrl(URL))
    await finish(store, job_id)
    assert {each.endpoint_id for each in await all_deliveries(store)} == {mine.id, attached.endpoint_id}


async def test_nobody_subscribes_and_nothing_is_stored(store: Store) -> None:
    await subscribe(store, URL, project="other")
    job_id = await store.submit(30)
    await finish(store, job_id)
    await report_progress(store.database)
    assert await store.count(WebhookEvent) == 0


async def test_a_job_that_runs_a_batch_leaves_the_events_to_its_batch(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(10)
    await store.set_job(job_id, batch_id=job_id.replace("job", "batch"))
    await pause_resume.pause(store.jobs, "p", job_id)
    await pause_resume.resume(store.jobs, "p", job_id, dispatcher=store.dispatcher)
    await finish(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED and await store.count(WebhookEvent) == 0


async def test_an_end_that_is_rolled_back_leaves_no_event(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(10)
    with pytest.raises(ZeroDivisionError):
        async with store.database.write() as connection:
            await store_end(connection, job_id)
            raise ZeroDivisionError
    assert await store.count(WebhookEvent) == 0


async def store_end(connection: AsyncConnection, job_id: str) -> None:
    await connection.execute(
        update(Job).where(Job.id == job_id).values(status=JobStatus.COMPLETED, finished_at=db_now())
    )
    await record_job_event(connection, job_id)


async def test_progress_is_reported_once_for_each_quarter_and_not_behind_the_end(store: Store) -> None:
    await subscribe(store, URL, events=[EventType.JOB_PROGRESS, EventType.JOB_COMPLETED])
    job_id = await store.submit(40)
    seen = []
    for shard in await store.claim_all(job_id):
        await report_progress(store.database)
        for low in (0, 5):
            await record(store.jobs, shard, landed(shard, range(low, low + 5), route=store.routes[0]))
            await asyncio.gather(*(report_progress(store.database) for _ in range(3)))
        seen.append([event.data.get("progress") for event in await events_of(store, job_id)])
    events = await events_of(store, job_id)
    marks = sorted(event.data["progress"] for event in events if event.type == EventType.JOB_PROGRESS)
    assert marks == [0.25, 0.5, 0.75] and len(events) == 4
    assert len(seen[0]) == 1
    [half] = [event for event in events if event.data.get("progress") == 0.5]
    assert half.data == {"id": job_id, "progress": 0.5, "total": 40, "completed": 20, "failed": 0}


async def test_a_job_that_passes_several_quarters_at_once_reports_the_last(store: Store) -> None:
    await subscribe(store, URL)
    job_id = await store.submit(40)
    for shard in (await store.claim_all(job_id))[:3]:
        await record(store.jobs, shard, landed(shard, route=store.routes[0]))
    await report_progress(store.database)
    assert [event.data["progress"] for event in await events_of(store, job_id)] == [0.75]


async def test_many_jobs_and_endpoints_report_their_progress_each_once(store: Store) -> None:
    endpoints = 40
    for _ in range(endpoints - 1):
        await subscribe(store, URL, events=[EventType.JOB_FAILED])
    await subscribe(store, URL, events=[EventType.JOB_PROGRESS])
    job_ids = [await store.submit(1, tag=f"{number}") for number in range(60)]
    assert len(job_ids) * endpoints > 2 * job_events.PROGRESS_ROWS
    for job_id in job_ids:
        await store.set_job(job_id, total=4, completed=2)
    await report_progress(store.database)
    await report_progress(store.database)
    for job_id in job_ids:
        assert [event.data["progress"] for event in await events_of(store, job_id)] == [0.5]


async def test_an_endpoint_that_is_deleted_meanwhile_does_not_undo_the_end_of_a_job(store: Store) -> None:
    for round_number in range(10):
        endpoint = await subscribe(store, URL)
        job_id = await store.submit(10, tag=f"{round_number}")
        [shard] = await store.claim_all(job_id)
        await asyncio.gather(
            record(store.jobs, shard, landed(shard, route=store.routes[0])),
            delete_endpoint(store.database, "p", endpoint.id),
        )
        assert await store.status(job_id) == JobStatus.COMPLETED
    assert await all_deliveries(store) == []
