"""The doctor names what does not run, what is stuck, what is of another version, and where /readyz is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import insert, update

from cli.commands.doctor.api_server import server, unready
from cli.commands.doctor.finding import Finding
from cli.commands.doctor.processes import SKEW_S, processes, running
from cli.data_dir import DataDir
from engine.config.settings import Settings
from engine.process.process_names import process_name
from engine.queue import process_heartbeats
from engine.queue.process_heartbeats import OUR_VERSION, ProcessHeartbeat
from models.base import db_now
from models.process import ServiceProcess
from tests.cli_fake_api import FakeApi, serving
from tests.integration.store import Store
from tests.waiting import until

ALL = ("api", "worker", "scheduler")


def found(checks: list[Finding]) -> dict[str, Finding]:
    return {each.check: each for each in checks}


async def examined(store: Store) -> dict[str, Finding]:
    return found(await asyncio.to_thread(running, store.runtime.settings))


async def change(store: Store, service: str, **values: object) -> None:
    async with store.runtime.database.write() as connection:
        await connection.execute(update(ServiceProcess).where(ServiceProcess.service == service).values(values))


async def test_processes_that_beat_are_well(store: Store) -> None:
    for service in ALL:
        await process_heartbeats.heartbeat(store.runtime.database, service)
    checks = await examined(store)
    assert {name: checks[name].status for name in (*ALL, "versions", "clock")} == dict.fromkeys(
        (*ALL, "versions", "clock"), "ok"
    )


@pytest.mark.parametrize("service", ALL)
async def test_one_that_does_not_run_or_is_stuck_is_named_with_its_fix(store: Store, service: str) -> None:
    for each in ALL:
        await process_heartbeats.heartbeat(store.runtime.database, each)
    await change(store, service, seen_at=db_now() - 300)
    stuck = (await examined(store))[service]
    assert (stuck.status, "5 min ago" in stuck.detail, f"embedmill {service}" in stuck.fix) == ("fail", True, True)
    await process_heartbeats.deregister(store.runtime.database, service)
    gone = (await examined(store))[service]
    assert (gone.status, gone.detail, f"embedmill {service}" in gone.fix) == ("fail", "none runs", True)


async def test_another_version_is_named(store: Store) -> None:
    for each in ALL:
        await process_heartbeats.heartbeat(store.runtime.database, each)
    await change(store, "worker", version="0.0.1")
    versions = (await examined(store))["versions"]
    assert versions.status == "warn" and "worker" in versions.detail and "0.0.1" in versions.detail
    assert OUR_VERSION in versions.detail and versions.fix


async def test_where_nothing_runs_one_line_says_so(store: Store) -> None:
    checks = await examined(store)
    assert checks["processes"].status == "warn" and "embedmill up" in checks["processes"].fix
    assert "scheduler" not in checks


async def test_rows_of_yesterday_are_forgotten_and_those_of_the_dead_are_not_believed(store: Store) -> None:
    async with store.runtime.database.write() as connection:
        await connection.execute(
            insert(ServiceProcess).values(
                id="api/elsewhere", service="api", version="0", started_at=0.0, seen_at=db_now() - 90_000
            )
        )
    await process_heartbeats.heartbeat(store.runtime.database, "api")
    assert await store.count(ServiceProcess) == 1
    await change(store, "api", id=f"api/{_dead_process()}")
    rows, ahead_s = await process_heartbeats.list_processes(store.runtime.database)
    assert rows == [] and abs(ahead_s) < SKEW_S


def _dead_process() -> str:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return f"{process_name().rpartition(':')[0]}:{process.pid}"


async def test_a_duty_beats_and_signs_off(store: Store) -> None:
    beating = asyncio.create_task(process_heartbeats.heartbeat_loop(store.runtime.database, "api"))
    await until(lambda: store.count(ServiceProcess))
    beating.cancel()
    await asyncio.wait({beating})
    assert await store.count(ServiceProcess) == 0


def test_clocks_that_differ_are_a_finding() -> None:
    seen = [ProcessHeartbeat("api/x", "api", OUR_VERSION, 1.0)]
    for ahead_s, word in ((90.0, "ahead of"), (-90.0, "behind")):
        clock = found(list(processes(seen, ahead_s)))["clock"]
        assert clock.status == "warn" and word in clock.detail and "NTP" in clock.fix


def test_with_a_port_for_operators_readyz_is_asked_there(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(url: str) -> tuple[int, bytes]:
        asked.append(url)
        return (200, b"{}")

    settings = Settings(data_dir=tmp_path, ops_port=9090)
    assert unready("https://api.internal:8443", settings, ask) is None
    assert unready("http://[::1]:8080", settings, ask) is None
    assert unready("http://127.0.0.1:8080", Settings(data_dir=tmp_path), ask) is None
    assert asked == ["http://api.internal:9090/readyz", "http://[::1]:9090/readyz", "http://127.0.0.1:8080/readyz"]


def test_a_port_that_is_set_on_one_side_only_is_named(tmp_path: Path) -> None:
    def nobody(_url: str) -> tuple[int, bytes]:
        raise httpx.ConnectError("refused")

    here = unready("http://127.0.0.1:8080", Settings(data_dir=tmp_path, ops_port=9090), nobody)
    assert here is not None and "EMBEDMILL_OPS_PORT" in here.detail and "unset it here" in here.fix
    there = unready("http://127.0.0.1:8080", Settings(data_dir=tmp_path), lambda _url: (404, b"no such route"))
    assert there is not None and "set the same EMBEDMILL_OPS_PORT here" in there.fix
    broken = unready("http://127.0.0.1:8080", Settings(data_dir=tmp_path), lambda _url: (503, b'{"broker":"away"}'))
    assert broken is not None and "away" in broken.detail


def test_the_key_is_not_sent_to_the_port_for_operators(tmp_path: Path) -> None:
    api = FakeApi()
    with serving(api) as url:
        server(url, "em_key", DataDir(tmp_path), Settings(data_dir=tmp_path))
    looks = [request for request in api.requests if request.url.path == "/readyz"]
    assert looks and all("em_key" not in request.headers.get("authorization", "") for request in looks)
