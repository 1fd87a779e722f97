"""The whole system around a fake upstream: the product's own processes, and what a test asks of them."""

from __future__ import annotations

import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import httpx
import orjson

from cli.data_dir import DataDir
from cli.embedded_valkey import set_up_valkey
from tests.services import run_async
from tests.system.processes import EMBEDMILL, Processes
from tests.waiting import wait_until

MODEL, UPSTREAM_MODEL, WIDTH = "test/64", "fake", 64
PRICE = "0.02"
LEASE_S, SWEEP_S = 4.0, 0.5
CALLS_IN_FLIGHT, BATCH = 4, 64
READY_S = 40.0
# Leases and sweeps of seconds, so that a recovery fits into a test; calls small enough that a job makes many.
SETTINGS = {
    "LEASE_S": f"{LEASE_S:g}",
    "HEARTBEAT_S": "1",
    "SWEEP_S": f"{SWEEP_S:g}",
    "RING_AGAIN_S": "2",
    "SHARD_INPUTS": "512",
    "BATCH_INPUTS": f"{BATCH}",
    "SHARD_CONCURRENCY": f"{CALLS_IN_FLIGHT}",
}
CONFIG = f"""
[providers.up]
kind = "openai"
base_url = "http://127.0.0.1:{{port}}/v1"

[models."{MODEL}"]
dimensions = {WIDTH}
input_usd_per_million_tokens = "{PRICE}"
[[models."{MODEL}".routes]]
provider = "up"
model = "{UPSTREAM_MODEL}"
"""


class Stack:
    """Fake upstream, embedded Valkey, API, worker and scheduler, on free ports and in a folder of their own."""

    def __init__(self, folder: Path, *, database_url: str = "") -> None:
        self.database_url = database_url or f"sqlite:///{folder / 'data' / 'embedmill.db'}"
        self._data = DataDir(folder / "data")
        self._data.make()
        self.fake_port, api_port = free_port(), free_port()
        config = folder / "embedmill.toml"
        config.write_text(CONFIG.format(port=self.fake_port))
        self._valkey = set_up_valkey(self._data)
        self.broker_url = self._valkey.url
        places = {
            "DATA_DIR": str(self._data.path),
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.broker_url,
            "CONFIG": str(config),
        }
        self.processes = Processes(folder, SETTINGS | places)
        self._bill = folder / "bill.ndjson"
        fake = ["--port", str(self.fake_port), "--width", str(WIDTH), "--log", str(self._bill), "--log-inputs"]
        self._fake_command = [sys.executable, "-m", "cli.fake_upstream", *fake]
        self._api_command = [*EMBEDMILL, "api", "--port", str(api_port)]
        self.fake = httpx.Client(base_url=f"http://127.0.0.1:{self.fake_port}", timeout=10, trust_env=False)
        self.url = f"http://127.0.0.1:{api_port}"
        self.api = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        try:
            self.processes.start("valkey", self._valkey.command)
            self.processes.start("fake", self._fake_command)
            self.processes.run("prepare")
            key = self._data.key() or orjson.loads(self.processes.run("keys", "create", "--json"))["key"]
            self.headers = {"authorization": f"Bearer {key}"}
            self.api.headers.update(self.headers)
            self.processes.start("worker", [*EMBEDMILL, "worker", "--concurrency", "2"])
            self.processes.start("scheduler", [*EMBEDMILL, "scheduler"])
            self.processes.start("api", self._api_command)
            self.await_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.processes.close()
        self.api.close()
        self.fake.close()

    def restart(self, name: str) -> None:
        """kill -9, and what a supervisor does about it."""
        self.processes.kill(name)
        self.processes.start(name)

    def await_ready(self) -> None:
        def ready() -> bool:
            self.processes.check()
            with suppress(httpx.TransportError):
                return self.api.get("/readyz").status_code == 200
            return False

        wait_until(ready, READY_S, every_s=0.1, what="the stack's readiness")

    def latency(self, milliseconds: float) -> None:
        """How long every upstream call takes from now on."""
        rules = [{"do": {"latency_ms": milliseconds}}]
        self.fake.put("/__script", content=orjson.dumps(rules)).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """What the fake upstream has counted."""
        body: dict[str, Any] = self.fake.get("/__stats").json()
        return body

    def bill(self) -> list[dict[str, Any]]:
        """What the fake upstream charges for, call by call."""
        return [orjson.loads(line) for line in self._bill.read_bytes().splitlines()] if self._bill.exists() else []

    def submit(self, texts: Sequence[str]) -> str:
        answer = self.upload(iter([b"\n".join(orjson.dumps(text) for text in texts)]))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def upload(self, body: Iterable[bytes], **headers: str) -> httpx.Response:
        kind = {"content-type": "application/x-ndjson"}
        return self.api.post("/v1/embeddings/jobs", params={"model": MODEL}, content=body, headers=kind | headers)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.api.get(f"/v1/embeddings/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def await_progress(self, job_id: str, completed: int) -> None:
        what = f"{completed} inputs of {job_id}"
        wait_until(lambda: self.job(job_id)["counts"]["completed"] >= completed, 30, what=what)

    def await_end(self, job_id: str, timeout_s: float) -> None:
        wait_until(lambda: self.job(job_id)["finished_at"], timeout_s, what=f"the end of {job_id}")

    def can_write(self) -> bool:
        """False when someone holds the write lock of SQLite and keeps it."""
        if not self.database_url.startswith("sqlite"):
            return True
        try:
            with closing(sqlite3.connect(self.database_url.removeprefix("sqlite:///"), timeout=0.5)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            return True
        except sqlite3.OperationalError:
            return False

    def query(self, text: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        if self.database_url.startswith("sqlite"):
            with closing(sqlite3.connect(self.database_url.removeprefix("sqlite:///"), timeout=30)) as connection:
                return connection.execute(text).fetchall()

        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return [tuple(row) for row in await connection.fetch(text)]
            finally:
                await connection.close()

        return run_async(ask())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def seconds_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """How long it took."""
    started = time.monotonic()
    wait_until(condition, timeout_s, what=what, every_s=0.05)
    return time.monotonic() - started
