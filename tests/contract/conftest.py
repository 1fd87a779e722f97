"""A real server for clients that are other people's code: its own process, its own port, its own key."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from engine.access.keys import create_key
from engine.storage.database import Database
from models.key import Scope
from tests.contract import node_package
from tests.gateway import CONFIG, PEPPER, Gateway
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
START_S = 100.0


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    key: str
    jobs_only_key: str  # may not embed

    @property
    def base_url(self) -> str:
        """As SDKs want it."""
        return f"{self.url}/v1"


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def make_keys(url: str) -> tuple[str, str]:
    database = Database(url)
    try:
        _, key = await create_key(database, PEPPER.encode())
        _, jobs_only = await create_key(database, PEPPER.encode(), scopes=[Scope.JOBS])
    finally:
        await database.close()
    return key, jobs_only


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2.0) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="session")
def server(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m cli api` with the fake provider on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    database = folder / "embedmill.db"
    shutil.copyfile(migrated, database)
    config = folder / "embedmill.toml"
    config.write_text(CONFIG)
    key, jobs_only_key = asyncio.run(make_keys(f"sqlite+aiosqlite:///{database}"))
    url = f"http://127.0.0.1:{(port := free_port())}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    ours = {"DATA_DIR": str(folder), "CONFIG": str(config), "KEY_PEPPER": PEPPER, "LOG_LEVEL": "WARNING"}
    ours["WEBHOOK_ALLOWED_NETWORKS"] = "127.0.0.0/8"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "api", "--port", str(port)],
            cwd=ROOT,
            env=inherited | {f"EMBEDMILL_{name}": value for name, value in ours.items()},
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: answers(url) or process.poll() is not None, START_S, what="the server's start")
        assert process.poll() is None, (folder / "log").read_text()
        yield Server(url, key, jobs_only_key)
    finally:
        process.terminate()
        try:
            ended = process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert ended in (0, -15), (folder / "log").read_text()


@pytest.fixture(scope="session")
def node_packages() -> Path:
    """A folder with the official OpenAI package for Node."""
    return node_package.install()


@pytest.fixture
async def statements(gateway: Gateway) -> AsyncIterator[list[str]]:
    """Every statement that the database is sent."""
    sent: list[str] = []
    engines = [engine.sync_engine for engine in (gateway.runtime.database._reads, gateway.runtime.database._writes)]

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    yield sent
    for engine in engines:
        event.remove(engine, "before_cursor_execute", note)
