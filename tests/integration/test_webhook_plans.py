"""What webhooks ask of the database all the time, and at the end of every job, is answered from indexes."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert, text

from engine.webhooks import attempts
from engine.webhooks.job_events import record_job_event
from engine.webhooks.purge import purge_events
from models.base import Base, new_id
from models.webhook import WebhookDelivery, WebhookEndpoint, WebhookEvent
from tests.integration.store import Store
from tests.integration.test_plans import plan_of, statements

ROWS = 3000
TABLES = ("webhook_endpoints", "webhook_events", "webhook_deliveries", "jobs")


@pytest.fixture
async def crowded(store: Store) -> Store:
    """Many jobs with a webhook each, and many deliveries that are through or wait for later."""
    like = dict((await store.job(await store.submit()))._mapping)
    later = like["created_at"] + 3600
    jobs: list[dict[str, Any]] = []
    endpoints: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    deliveries: list[dict[str, Any]] = []
    for number in range(ROWS):
        job_id, endpoint_id, event_id = new_id("job"), new_id("we"), new_id("evt")
        jobs.append(like | {"id": job_id, "status": "completed"})
        endpoints.append(
            {"id": endpoint_id, "project": "p", "job_id": job_id, "name": "", "url": "u", "secret": "s"}
            | {"event_types": ["embedding.job.failed"], "created_at": 1.0}
        )
        events.append(
            {"id": event_id, "project": "p", "type": "t", "subject_id": job_id, "data": {}, "created_at": later}
        )
        state = "pending" if number % 2 else "delivered"
        deliveries.append({"event_id": event_id, "endpoint_id": endpoint_id, "state": state, "next_attempt_at": later})
    async with store.database.write() as connection:
        for table, rows in ((Base.metadata.tables["jobs"], jobs), (WebhookEndpoint, endpoints), (WebhookEvent, events)):
            await connection.execute(insert(table), rows)
        await connection.execute(insert(WebhookDelivery).values(attempts=0), deliveries)
        await connection.execute(text("analyze"))
    return store


async def test_no_statement_reads_a_whole_table(crowded: Store) -> None:
    job_id = await crowded.submit(tag="another")
    with statements(crowded) as asked:
        await attempts.due_deliveries(crowded.database, busy_endpoints=["we_1"], busy_projects=["x"], limit=64)
        async with crowded.database.write() as connection:
            await record_job_event(connection, job_id)
        await purge_events(crowded.database, crowded.runtime.settings)
    assert len(asked) >= 3
    for statement, parameters in asked:
        plan = await plan_of(crowded, statement, parameters)
        for table in TABLES:
            assert f"Seq Scan on {table}" not in plan and f"SCAN {table}" not in plan, f"{statement}\n\n{plan}"


async def test_the_end_of_a_job_without_subscribers_is_one_look_up(crowded: Store) -> None:
    job_id = await crowded.submit(tag="another")
    with statements(crowded) as asked:
        async with crowded.database.write() as connection:
            await record_job_event(connection, job_id)
    assert len(asked) == 1
