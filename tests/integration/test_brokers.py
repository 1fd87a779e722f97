"""The doorbell and a real Celery worker over each broker: jobs complete, outages only delay, and garbage is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from celery import Celery

from api.app import create_app
from cli.data_dir import DataDir
from cli.embedded_valkey import EmbeddedValkey, set_up_valkey
from engine.jobs.dispatch import dispatch
from engine.jobs.sweep import sweep
from engine.keys import create_key, load_pepper
from engine.queue import BULK_QUEUE, RUN_SHARD, broker_options
from engine.runtime import Runtime
from models.job import FINISHED, JobStatus
from providers.fake import fake_vectors
from tests.integration.store import MODEL, UPSTREAM_MODEL, WIDTH, Store, text_of
from tests.integration.truth import Truth
from tests.services import SqliteFiles
from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

PATIENCE_S = 30.0
NOT_HELD_UP_S = 3.0  # a broker that refuses connections is known to be away at once


_TAGGED = b'{"properties": {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "r"}}, '
NO_MESSAGES = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"not json \xff",
    b"[" * 100_000,
    b'{"body": "e30="}',
    b'{"__type__": "datetime", "__value__": 1}',
    b'{"properties": {"delivery_tag": ["t"], "delivery_info": {}}}',
    _TAGGED + b'"headers": {"task": ["a list"]}}',
    _TAGGED + b'"headers": []}',
    _TAGGED + b'"body": {}}',
    _TAGGED + b'"headers": {}, "body": "&"}',
)


@pytest.fixture
def processes(quiet: Store, tmp_path: Path) -> Iterator[Processes]:
    settings = quiet.runtime.settings
    places = {"DATA_DIR": str(tmp_path), "DATABASE_URL": settings.database_url, "CONFIG": settings.config}
    places["CLAIM_UNRUNG_S"] = "0.5"
    processes = Processes(tmp_path, places)
    yield processes
    processes.close()


@pytest.fixture
def valkey(tmp_path: Path) -> EmbeddedValkey:
    """Set up as the product does, and not started."""
    return set_up_valkey(DataDir(tmp_path))


def start_valkey(processes: Processes, valkey: EmbeddedValkey) -> None:
    processes.start("valkey", valkey.command)
    wait_until(valkey.answers, PATIENCE_S, what="Valkey's answer")


def start_worker(processes: Processes, broker_url: str) -> None:
    processes.start("worker", ["env", f"EMBEDMILL_BROKER_URL={broker_url}", *EMBEDMILL, "worker", "--concurrency", "1"])


@pytest.fixture(params=["valkey", "redis", "rabbitmq"])
def broker_url(request: pytest.FixtureRequest, processes: Processes) -> str:
    if request.param == "valkey":
        valkey: EmbeddedValkey = request.getfixturevalue("valkey")
        start_valkey(processes, valkey)
        return valkey.url
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
async def quiet(sqlite_files: SqliteFiles, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.open(sqlite_files.create(tmp_path), tmp_path)
    yield store
    await store.close()


def with_broker(store: Store, url: str) -> Store:
    """The same store with a bell that really rings."""
    settings = replace(store.runtime.settings, broker_url=url, ring_again_s=2.0)
    return Store(Runtime.open(settings), store.bell)


async def completed(store: Store, job_id: str, processes: Processes, *, sweeping: bool = False) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while await store.status(job_id) not in FINISHED:
                processes.check()
                if sweeping:
                    await sweep(store.runtime)
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"the job is {await store.status(job_id)}\n{processes.log_of('worker')}")
    assert await store.status(job_id) == JobStatus.COMPLETED
    truth = await Truth.read(store.runtime.database, job_id)
    truth.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    assert {shard.attempt for shard in truth.shards} == {1}


def send_garbage(url: str) -> None:
    """What may lie in a queue that others can write to."""
    app = Celery(broker=url, set_as_current=False)
    queue_type = "quorum" if url.startswith("amqp") else None
    app.conf.update(broker_transport_options=broker_options(url), task_create_missing_queue_type=queue_type)
    nonsense: list[Any] = [(), (1, 2, 3), ({"a": 1},), (None,), ("shard_none",), ("x" * 100_000,)]
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for arguments in nonsense:
            app.send_task(RUN_SHARD, args=arguments, queue=BULK_QUEUE, producer=producer)
        app.send_task("somebody.elses", args=(1,), queue=BULK_QUEUE, producer=producer)
        for body, kind in (
            (b"garbage", "text/plain"),
            (b"\x80\x04.", "application/x-python-serialize"),
            (b"{", "application/json"),
        ):
            producer.publish(body, routing_key=BULK_QUEUE, content_type=kind, content_encoding="binary")
    app.close()


@pytest.mark.fault(53)
async def test_jobs_complete_and_garbage_in_the_queue_does_no_harm(
    quiet: Store, broker_url: str, processes: Processes
) -> None:
    store = with_broker(quiet, broker_url)
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, await store.submit(60), processes)
    await asyncio.to_thread(send_garbage, broker_url)
    await completed(store, await store.submit(60), processes, sweeping=True)
    await store.close()


async def test_bytes_that_are_no_message_at_all_do_no_harm(
    quiet: Store, valkey: EmbeddedValkey, processes: Processes
) -> None:
    """Whatever a stranger pushes into the list. RabbitMQ knows messages only."""
    start_valkey(processes, valkey)
    store = with_broker(quiet, valkey.url)
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, await store.submit(10), processes)
    with redis.Redis.from_url(valkey.url) as client:
        for raw in NO_MESSAGES:
            client.lpush(f"embedmill:{BULK_QUEUE}", raw)
    await completed(store, await store.submit(10), processes, sweeping=True)
    await store.close()


@pytest.mark.fault(7, 8)
async def test_a_message_that_comes_many_times_is_worked_on_once(
    quiet: Store, broker_url: str, processes: Processes
) -> None:
    store = with_broker(quiet, broker_url)
    quiet.bell.works = False
    job_id = await quiet.submit(20)
    for _ in range(10):
        assert await store.runtime.doorbell.ring(await store.shard_ids(job_id))
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, job_id, processes)
    # And once more for a job that is over.
    assert await store.runtime.doorbell.ring(await store.shard_ids(job_id))
    await completed(store, await store.submit(10), processes)
    await completed(store, job_id, processes)
    await store.close()


@pytest.mark.fault(11)
async def test_a_broker_that_is_away_delays_jobs_and_refuses_none(
    quiet: Store, valkey: EmbeddedValkey, processes: Processes
) -> None:
    store = with_broker(quiet, valkey.url)
    runtime = store.runtime
    pepper = load_pepper(runtime.settings.key_pepper, runtime.settings.data_dir)
    _, key = await create_key(runtime.database, pepper, project="p")
    transport = httpx.ASGITransport(create_app(runtime))
    body = {"model": MODEL, "input": [text_of("text", index) for index in range(30)]}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"authorization": f"Bearer {key}"}
    ) as client:

        async def accepted() -> str:
            async with asyncio.timeout(NOT_HELD_UP_S):
                answer = await client.post("/v1/embeddings/jobs", json=body)
            assert answer.status_code == 202, answer.text
            return str(answer.json()["id"])

        assert not await runtime.doorbell.reachable()
        first = await accepted()
        assert await dispatch(runtime) == 0
        start_worker(processes, store.runtime.settings.broker_url)  # it waits for the broker as well
        start_valkey(processes, valkey)
        await completed(store, first, processes, sweeping=True)
        assert await runtime.doorbell.reachable()

        processes.kill("valkey")
        second = await accepted()
        assert not await runtime.doorbell.reachable()
        start_valkey(processes, valkey)
        await completed(store, second, processes, sweeping=True)
    await store.close()
