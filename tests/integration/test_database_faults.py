"""A database that answers and refuses: read-only, login rejected, renamed, a table missing, its disk full."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from sqlalchemy import func, select

from api.app import create_app
from engine.access.keys import create_key, load_pepper
from engine.jobs.recording.spool_replay import replay
from engine.ledger.usage_buffer import UsageBuffer
from engine.ledger.usage_rows import delivered as usage_rows
from engine.queue import worker_heartbeats
from models.embedding import BatchOutcome
from models.errors import StorageBlocked, StorageUnavailable
from models.job import JobStatus
from models.usage import UsageRecord
from tests.integration.store import MODEL, Store, landed, text_of
from tests.integration.test_outages import Bench, checked, only
from tests.running import run_shard
from tests.services import POSTGRES_URL, PostgresServer, SqliteFiles, run_async
from tests.waiting import until

ROLE = "embedmill_test_faults"


def ask(statement: str) -> None:
    """One statement to the server, as its superuser."""

    async def run() -> None:
        connection = await asyncpg.connect(POSTGRES_URL, timeout=5.0)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    run_async(run())


@pytest.fixture
def owned_url(postgres: PostgresServer) -> Iterator[str]:
    """A migrated database of a role that is no superuser: what is refused to roles holds for it."""
    url = postgres.create()
    name = urlsplit(url).path[1:]
    role = f"{ROLE}_{name[-8:]}"
    ask(f"CREATE ROLE {role} LOGIN")
    ask(f"GRANT ALL ON DATABASE {name} TO {role}")

    async def grant() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(f"GRANT ALL ON SCHEMA public TO {role}")
        await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        await connection.close()

    run_async(grant())
    yield urlsplit(url)._replace(netloc=f"{role}@{urlsplit(url).netloc.rpartition('@')[2]}").geturl()
    postgres.drop(url)
    ask(f"DROP OWNED BY {role}; DROP ROLE {role}")


class Fault:
    """Something that is wrong with one database for a while."""

    def __init__(self, url: str, postgres: PostgresServer, begin: str, end: str) -> None:
        names = {"name": urlsplit(url).path[1:], "role": urlsplit(url).username}
        self._url, self._postgres = url, postgres
        self._begin, self._end = begin.format(**names), end.format(**names)

    def begin(self) -> None:
        for statement in self._begin.split(";"):
            ask(statement)
        self._postgres.end_connections(self._url)

    def end(self) -> None:
        for statement in self._end.split(";"):
            ask(statement)
        # As at the end of a failover. Sessions that are read-only and still open must be replaced without it.


FAULTS = {
    "read-only": (
        "ALTER DATABASE {name} SET default_transaction_read_only = on",
        "ALTER DATABASE {name} RESET default_transaction_read_only",
    ),
    "login rejected": ("ALTER ROLE {role} NOLOGIN", "ALTER ROLE {role} LOGIN"),
    "no connections allowed": (
        "ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        "ALTER DATABASE {name} ALLOW_CONNECTIONS true",
    ),
    "no connection left": (
        "ALTER ROLE {role} CONNECTION LIMIT 0",
        "ALTER ROLE {role} CONNECTION LIMIT -1",
    ),
}


@pytest.fixture(params=list(FAULTS))
def fault(request: pytest.FixtureRequest, owned_url: str, postgres: PostgresServer) -> Fault:
    return Fault(owned_url, postgres, *FAULTS[request.param])


@pytest.fixture
async def bench(owned_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(Store.open(owned_url, tmp_path, shard_concurrency=1, lease_s=20.0))
    yield bench
    await bench.close()


async def writes(store: Store) -> bool:
    try:
        await store.runtime.database.ping()
    except StorageUnavailable:
        return False
    return True


async def test_paid_results_are_spooled_and_recorded_without_another_call(bench: Bench, fault: Fault) -> None:
    store = bench.store
    shard_id = await only(store, job_id := await store.submit(10))

    def begin(number: int) -> None:
        if number == 1:
            fault.begin()

    bench.upstream.at_call = begin
    running = asyncio.create_task(run_shard(store.runtime, shard_id, "w"))

    await until(bench.spooled, what="a spool file")
    assert not await writes(store)
    fault.end()
    await running
    assert bench.upstream.calls == 3 and bench.spooled() == []
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) == 10 and await store.status(job_id) == JobStatus.COMPLETED


async def test_the_api_answers_503_is_not_ready_and_keeps_every_ledger_row(
    owned_url: str, fault: Fault, tmp_path: Path
) -> None:
    store = Store.open(owned_url, tmp_path)
    runtime = store.runtime
    pepper = load_pepper(runtime.settings.key_pepper, runtime.settings.data_dir)
    _, key = await create_key(runtime.database, pepper, project="p")
    transport = httpx.ASGITransport(create_app(runtime), raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {key}"}
    sync = {"model": MODEL, "input": [text_of("sync", 1)]}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        await worker_heartbeats.heartbeat(runtime.database, "w", 1)
        assert (await client.get("/readyz")).json()["database"] == "ok"
        assert (await client.post("/v1/embeddings", json=sync)).status_code == 200
        fault.begin()
        for _ in range(11):  # for keys used just now, sync calls go on
            assert (await client.post("/v1/embeddings", json=sync)).status_code == 200
        refused = await client.post("/v1/embeddings/jobs", json=sync)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "storage_unavailable"

        async def not_ready() -> bool:
            ready = await client.get("/readyz")  # a good answer is used again for two seconds
            return ready.status_code == 503 and ready.json()["database"] == "unavailable"

        await until(not_ready, what="/readyz that says so")

        await until(lambda: [*(tmp_path / "usage").glob("*.spool")], what="a file of usage rows")
        fault.end()

        async def all_rows() -> bool:
            try:
                return await store.count(UsageRecord) == 12
            except StorageUnavailable:
                return False

        await until(all_rows, what="the whole ledger")
        assert (await client.get("/readyz")).json()["database"] == "ok"
        assert (await client.post("/v1/embeddings/jobs", json=sync)).status_code == 202
    assert not [*(tmp_path / "usage").iterdir()]
    await store.close()


async def test_rows_that_a_dead_process_left_on_the_disk_are_written_once(
    owned_url: str, fault: Fault, tmp_path: Path
) -> None:
    store = Store.open(owned_url, tmp_path)
    fault.begin()
    buffer: UsageBuffer = store.runtime.usage
    part = BatchOutcome([0], None, None, 5, False, Decimal("0.001"), store.routes[0])
    buffer.add(usage_rows([part] * 3, project="p", key_id="k", lane="interactive", alias=MODEL))
    await store.close()  # while the database is away
    fault.end()
    store = Store.open(owned_url, tmp_path)
    await until(lambda: writes(store), what="the database")
    await asyncio.gather(store.runtime.usage.replay(), store.runtime.usage.replay())
    async with store.runtime.database.read() as connection:
        tokens = (await connection.execute(select(func.sum(UsageRecord.prompt_tokens)))).scalar_one()
    assert tokens == 15
    await store.close()


async def test_heartbeats_go_on_after_any_refusal(owned_url: str, fault: Fault, tmp_path: Path) -> None:
    store = Store.open(owned_url, tmp_path)
    database = store.runtime.database
    beating = asyncio.create_task(worker_heartbeats.heartbeat_loop(database, "w", 1, every_s=0.05))
    await until(lambda: worker_heartbeats.count_alive(database, 5.0), what="a heartbeat")
    fault.begin()

    async def refused() -> bool:
        return not await writes(store)

    await until(refused, what="a refusal")
    fault.end()
    await until(lambda: writes(store), what="the database")
    await worker_heartbeats.deregister(database, "w")
    await until(lambda: worker_heartbeats.count_alive(database, 5.0), what="a heartbeat after the fault")
    assert not beating.done()
    beating.cancel()
    await store.close()


async def on_server(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(statement)
    await connection.close()


async def test_a_table_that_is_missing_stops_paying_until_it_is_there(
    bench: Bench, owned_url: str, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name is what an operator would have to migrate. Other shards are not claimed meanwhile."""
    store, root = bench.store, POSTGRES_URL.rpartition("/")[0] + urlsplit(owned_url).path
    job_id = await store.submit(30)
    shard_ids = await store.shard_ids(job_id)
    await on_server(root, "ALTER TABLE vectors RENAME TO vectors_away")
    running = asyncio.create_task(run_shard(store.runtime, shard_ids[0], "w"))

    async def waits() -> bool:
        return bool((await store.job(job_id)).waiting_on == "database")

    await until(waits, what="the job's word that it waits for the database")
    calls = bench.upstream.calls
    assert not await run_shard(store.runtime, shard_ids[1], "w")
    assert bench.upstream.calls == calls
    assert "run `embedmill migrate`" in caplog.text and "42P01" in caplog.text
    await on_server(root, "ALTER TABLE vectors_away RENAME TO vectors")
    await running
    for shard_id in shard_ids:
        await store.set_shard(shard_id, next_run_at=0.0)
        await run_shard(store.runtime, shard_id, "w")
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) == 30 and await store.status(job_id) == JobStatus.COMPLETED
    assert bench.upstream.calls == 3 * len(shard_ids)


async def test_the_first_request_after_a_restart_of_the_server_is_served(
    owned_url: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    store = Store.open(owned_url, tmp_path)
    for _ in range(3):  # several connections lie in the pool
        await asyncio.gather(*(store.count(UsageRecord) for _ in range(4)))
        await asyncio.to_thread(postgres.end_connections, owned_url)

        async def all_ended() -> bool:
            return not await asyncio.to_thread(postgres.end_connections, owned_url)

        await until(all_ended, what="the end of all sessions")
        async with asyncio.timeout(5):
            await asyncio.gather(*(store.count(UsageRecord) for _ in range(4)))
            await worker_heartbeats.heartbeat(store.runtime.database, "w", 1)
    await store.close()


async def test_replay_waits_for_a_table_and_sets_nothing_aside(
    owned_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from engine.jobs.recording.spool_replay import encode_spool

    caplog.set_level(logging.INFO)
    store = Store.open(owned_url, tmp_path)
    root = POSTGRES_URL.rpartition("/")[0] + urlsplit(owned_url).path
    held = await store.claim(await only(store, job_id := await store.submit(10)))
    file = store.runtime.spool.write(held.shard_id, encode_spool(held, landed(held, route=store.routes[0]), "use_1"))
    assert file is not None
    file.unlock()
    await on_server(root, "ALTER TABLE vectors RENAME COLUMN data TO data_away")
    with pytest.raises(StorageBlocked):
        await replay(store.jobs, store.runtime.spool)
    assert file.path.is_file()
    await on_server(root, "ALTER TABLE vectors RENAME COLUMN data_away TO data")
    assert await replay(store.jobs, store.runtime.spool) == 1
    await checked(store, job_id)
    await store.close()


async def test_a_full_disk_under_sqlite_costs_no_second_call(sqlite_files: SqliteFiles, tmp_path: Path) -> None:
    """The spool lies on another disk, which has room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    mounted = await asyncio.to_thread(subprocess.run, mount, capture_output=True, check=False, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        bench = Bench(Store.open(sqlite_files.create(disk), tmp_path, shard_concurrency=1, lease_s=20.0))
        store = bench.store
        shard_id = await only(store, job_id := await store.submit(10))

        def fill(number: int) -> None:
            if number == 1:
                with suppress(OSError), (disk / "filler").open("wb") as filler:
                    while True:
                        filler.write(b"x" * 4096)
                        filler.flush()

        bench.upstream.at_call = fill
        running = asyncio.create_task(run_shard(store.runtime, shard_id, "w"))

        await until(bench.spooled, what="a spool file")
        assert not await writes(store)  # so /readyz is not 200
        (disk / "filler").unlink()
        await running
        snapshot = await checked(store, job_id)
        assert len(snapshot.with_vector) == 10 and bench.upstream.calls == 3 and bench.spooled() == []
        await bench.close()
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(disk)], check=False)
