"""The notifier and a real Celery worker over each broker: jobs complete, outages only delay, and garbage is dropped."""

from __future__ import annotations

import asyncio
import bz2
import json
import os
import re
import subprocess
import zlib
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
from cli.up.embedded_valkey import EmbeddedValkey, set_up_valkey
from engine.access.keys import create_key, load_pepper
from engine.queue.broker import BULK_QUEUE, RUN_SHARD, Notifier, broker_options
from engine.runtime import Runtime
from models.job import FINISHED, JobStatus
from providers.fake import fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import MODEL, UPSTREAM_MODEL, WIDTH, Store, text_of
from tests.running import dispatch, sweep
from tests.services import SqliteFiles
from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

UNPACKED_BYTES = 400 * 1024 * 1024  # of a message that is packed into a few hundred kilobytes
PATIENCE_S = 60.0  # a worker on a busy machine takes half of it to start
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
    places["LEASE_S"] = "6"
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
    """The same store whose notifier publishes messages."""
    settings = replace(store.runtime.settings, broker_url=url)
    return Store(Runtime.open(settings), store.notifier)


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
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(lambda indexes: fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL))
    assert {shard.attempt for shard in snapshot.shards} == {1}


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
async def test_many_messages_for_a_few_shards_run_each_once(
    quiet: Store, broker_url: str, processes: Processes
) -> None:
    store = with_broker(quiet, broker_url)
    quiet.notifier.works = False
    job_id = await quiet.submit(20)
    assert await store.runtime.notifier.notify(20)
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, job_id, processes)
    # And once more for a job that is over.
    assert await store.runtime.notifier.notify(2)
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

        assert not await runtime.notifier.reachable()
        first = await accepted()
        assert await dispatch(runtime) == 0
        start_worker(processes, store.runtime.settings.broker_url)  # it waits for the broker as well
        start_valkey(processes, valkey)
        await completed(store, first, processes, sweeping=True)
        assert await runtime.notifier.reachable()

        processes.kill("valkey")
        second = await accepted()
        assert not await runtime.notifier.reachable()
        start_valkey(processes, valkey)
        await completed(store, second, processes, sweeping=True)
    await store.close()


def forged() -> list[dict[str, Any]]:
    """Messages of somebody who can write to the broker: each asks Celery for something that we never ask for."""
    usual = Celery(set_as_current=False).amqp.as_task_v2("forged", RUN_SHARD, ("shard_none",))
    plain = {"body": json.dumps(usual.body), "content_type": "application/json", "content_encoding": "utf-8"}
    asked: list[dict[str, Any]] = [
        {"timelimit": "zz"},
        {"timelimit": [1, 1]},
        {"id": {"an": "object"}},
        {"eta": "9999-12-31T23:59:59+00:00"},
        {"eta": 10**15},
        {"expires": "zz"},
        {"retries": 10**9},
        {"task": "somebody.elses"},
        {"group": ["g"]},
    ]
    messages: list[dict[str, Any]] = [{**plain, "headers": {**usual.headers, **each}} for each in asked]
    messages.append({**plain, "headers": {}})
    messages.append({**plain, "headers": usual.headers, "body": "x" * 10_000_000})
    messages.append({**plain, "headers": usual.headers, "content_type": "application/x-python-serialize"})
    for kind, pack in (("application/x-gzip", zlib.compress), ("application/x-bz2", bz2.compress)):
        bomb = {"headers": {**usual.headers, "compression": kind}, "body": pack(bytes(UNPACKED_BYTES))}
        messages.append({**plain, **bomb, "content_encoding": "binary"})
    strange = [json.dumps([[shard_id], {}, {}]) for shard_id in ("\ud800", "a\nb", "\x00")]
    messages += [{**plain, "headers": usual.headers, "body": body} for body in strange]
    chord = json.dumps([["shard_none"], {}, {"chord": {"task": "x"}, "callbacks": [{"task": "x"}]}])
    messages.append({**plain, "headers": usual.headers, "body": chord})
    return messages


def send_forged(url: str) -> None:
    app = Celery(broker=url, set_as_current=False)
    queue_type = "quorum" if url.startswith("amqp") else None
    app.conf.update(broker_transport_options=broker_options(url), task_create_missing_queue_type=queue_type)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        for message in forged() * 3:
            producer.publish(routing_key=BULK_QUEUE, exchange="", serializer=None, **message)
    app.close()


async def test_messages_that_we_did_not_send_are_dropped_and_take_no_slot(
    quiet: Store, broker_url: str, processes: Processes
) -> None:
    store = with_broker(quiet, broker_url)
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, await store.submit(10), processes)
    await asyncio.to_thread(send_forged, broker_url)
    for _ in range(3):
        await completed(store, await store.submit(10), processes, sweeping=True)
    log = wait_until(lambda: _with(processes, "worker", "did not send was dropped"), PATIENCE_S)
    assert "Unrecoverable" not in log and "Traceback" not in log
    assert peak_bytes(processes.pid("worker")) < UNPACKED_BYTES
    await store.close()


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _with(processes: Processes, name: str, words: str) -> str:
    log = processes.log_of(name)
    return log if words in log else ""


REFUSALS = {
    "NOREPLICAS": (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "WRONGTYPE": (["SET", f"embedmill:{BULK_QUEUE}", "x"], ["DEL", f"embedmill:{BULK_QUEUE}"]),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("refusal", list(REFUSALS))
async def test_a_redis_that_answers_and_refuses_ends_no_worker(
    quiet: Store, valkey: EmbeddedValkey, processes: Processes, refusal: str
) -> None:
    """Jobs go on slowly, also for a worker that starts meanwhile; afterwards messages arrive again."""
    start_valkey(processes, valkey)
    store = with_broker(quiet, valkey.url)
    begin, end = REFUSALS[refusal]
    start_worker(processes, store.runtime.settings.broker_url)
    await completed(store, await store.submit(10), processes)
    with redis.Redis.from_url(valkey.url) as client:
        client.execute_command(*begin)
        await completed(store, await store.submit(10), processes, sweeping=True)
        processes.kill("worker")
        processes.forget("worker")
        start_worker(processes, store.runtime.settings.broker_url)
        await completed(store, await store.submit(10), processes, sweeping=True)
        client.execute_command(*end)
    await completed(store, await store.submit(10), processes, sweeping=True)
    processes.check()
    await store.close()


async def test_two_installations_on_one_redis_do_not_take_each_others_messages(redis_url: str) -> None:
    ours, theirs = Notifier(redis_url, "production"), Notifier(redis_url, "staging")
    for _ in range(2):  # the second time the messages are there
        assert await ours.notify(1) and await theirs.notify(2)
    assert (await ours.waiting(), await theirs.waiting()) == (1, 2)
    with redis.Redis.from_url(redis_url) as client:
        assert client.llen("production:production.bulk") == 1
        assert client.llen("staging:staging.bulk") == 2
    ours.close()
    theirs.close()


@pytest.mark.parametrize("piece", [["worker"], ["scheduler"], ["api", "--port", "0"], ["migrate"]])
def test_a_fault_of_the_configuration_ends_every_piece_with_the_same_line(tmp_path: Path, piece: list[str]) -> None:
    config = tmp_path / "embedmill.toml"
    config.write_text('[providers.a]\nkind = "opnai"\n')
    environ = os.environ | {
        "EMBEDMILL_CONFIG": str(config),
        "EMBEDMILL_DATA_DIR": str(tmp_path),
        "EMBEDMILL_REDIS_URL": "redis://127.0.0.1:1",
    }
    ran = subprocess.run([*EMBEDMILL, *piece], env=environ, capture_output=True, text=True, timeout=60, check=False)
    said = ran.stderr.strip().splitlines()
    assert ran.returncode == 1 and len(said) == 1
    assert said[0].startswith("error: providers.a.kind = 'opnai' is not a provider")
