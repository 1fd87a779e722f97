"""The whole system around a fake upstream: the product's own processes, and what a test asks of them."""

from __future__ import annotations

import random
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import orjson

from cli.data_dir import DataDir
from cli.up.embedded_valkey import set_up_valkey
from tests.services import run_async
from tests.system.bill_log import BillLog
from tests.system.processes import EMBEDMILL, Processes
from tests.system.proxy import Proxy
from tests.waiting import wait_until

MODEL, UPSTREAM_MODEL, WIDTH = "test/64", "fake", 64
PRICE = "0.02"
LEASE_S, SWEEP_S = 4.0, 0.5
CALLS_IN_FLIGHT, BATCH = 4, 64
READY_S = 100.0
WORKER = (*EMBEDMILL, "worker", "--concurrency", "2")
UPSTREAM_KEY = "sk-stack-canary-0123456789abcdef"
# Leases and sweeps of seconds, so that a recovery fits into a test; calls small enough that a job makes many.
SETTINGS = {
    "LEASE_S": f"{LEASE_S:g}",
    "SHARD_INPUTS": "512",
    "BATCH_INPUTS": f"{BATCH}",
    "SHARD_CONCURRENCY": f"{CALLS_IN_FLIGHT}",
}
CONFIG = f"""
[providers.up]
kind = "openai"
base_url = "http://127.0.0.1:{{port}}/v1"
timeout_s = {{timeout_s}}
api_key = "env:STACK_UPSTREAM_KEY"

[models."{MODEL}"]
dimensions = {WIDTH}
input_usd_per_million_tokens = "{PRICE}"
verify_spaces = false  # tests count the calls: none is ours
[[models."{MODEL}".routes]]
provider = "up"
model = "{UPSTREAM_MODEL}"
"""
# A second provider, with a machine of its own.
OTHER_MODEL = "other/64"
OTHER_CONFIG = (
    CONFIG.replace("[providers.up]", "[providers.other]").replace('"up"', '"other"').replace(MODEL, OTHER_MODEL)
)


NOTHING_YET: dict[str, Any] = {"finished_at": None, "counts": {"completed": 0}}
Part = Literal["database", "broker", "upstream"]


class Stack:
    """Fake upstream, embedded Valkey, API, worker and scheduler, on free ports and in a folder of their own.

    `settings` are the product's, over those above; a part that is `proxied` is reached through `proxies[part]`;
    `workers` are the names of worker processes, each with two children; further APIs are named api-1, api-2, …;
    `more_config` follows in the configuration file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str = "",
        settings: Mapping[str, str] | None = None,
        proxied: Collection[Part] = (),
        workers: Sequence[str] = ("worker",),
        apis: int = 1,
        call_timeout_s: float = 60.0,
        has_other_upstream: bool = False,
        more_config: str = "",
    ) -> None:
        self.folder = folder
        self.database_url = database_url or f"sqlite:///{folder / 'data' / 'embedmill.db'}"
        self.workers = tuple(workers)
        self._data = DataDir(folder / "data")
        self._data.make()
        self.fake_port = free_port()
        self._valkey = set_up_valkey(self._data)
        self.broker_url = self._valkey.url
        addresses = {
            "database": self.database_url,
            "broker": self.broker_url,
            "upstream": f"http://127.0.0.1:{self.fake_port}",
        }
        self.proxies: dict[Part, Proxy] = {}
        for part in proxied:
            address = urlsplit(addresses[part])
            proxy = self.proxies[part] = Proxy(address.hostname or "127.0.0.1", address.port or 5432)
            place = address.netloc.rpartition("@")[0]
            netloc = f"{place}@127.0.0.1:{proxy.port}" if place else f"127.0.0.1:{proxy.port}"
            addresses[part] = urlunsplit(address._replace(netloc=netloc))
        config = folder / "embedmill.toml"
        upstream_port = urlsplit(addresses["upstream"]).port
        text = CONFIG.format(port=upstream_port, timeout_s=call_timeout_s)
        self.other_port = free_port() if has_other_upstream else None
        if self.other_port is not None:
            text += OTHER_CONFIG.format(port=self.other_port, timeout_s=call_timeout_s)
        config.write_text(text + more_config)
        places = {
            "DATA_DIR": str(self._data.path),
            "DATABASE_URL": addresses["database"],
            "REDIS_URL": addresses["broker"],
            "CONFIG": str(config),
        }
        self.processes = Processes(folder, SETTINGS | places | dict(settings or {}), STACK_UPSTREAM_KEY=UPSTREAM_KEY)
        bill = folder / "bill.ndjson"
        self.bill_log = BillLog(bill)
        fake = ["--port", str(self.fake_port), "--width", str(WIDTH), "--log", str(bill), "--log-inputs"]
        self._fake_command = [sys.executable, "-m", "cli.fake_upstream", *fake, "--api-key", UPSTREAM_KEY]
        self.fake = httpx.Client(base_url=f"http://127.0.0.1:{self.fake_port}", timeout=10, trust_env=False)
        ports = [free_port() for _ in range(apis)]
        self.urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(api_names(apis), ports, strict=True)}
        self.url = self.urls["api"]
        self.api = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        try:
            self.processes.start("valkey", self._valkey.command)
            self.processes.start("fake", self._fake_command)
            if self.other_port is not None:
                other = ["--port", str(self.other_port), "--width", str(WIDTH), "--api-key", UPSTREAM_KEY]
                self.processes.start("other-fake", [sys.executable, "-m", "cli.fake_upstream", *other])
            self.processes.run("prepare")
            self.key = self._data.key() or orjson.loads(self.processes.run("keys", "create", "--json"))["key"]
            self.headers = {"authorization": f"Bearer {self.key}"}
            self.api.headers.update(self.headers)
            for name in self.workers:
                self.processes.start(name, WORKER)
            self.processes.start("scheduler", [*EMBEDMILL, "scheduler"])
            for name, url in self.urls.items():
                self.processes.start(name, [*EMBEDMILL, "api", "--port", str(urlsplit(url).port)])
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
        for proxy in self.proxies.values():
            proxy.close()

    def restart(self, name: str) -> None:
        """kill -9, and what a supervisor does about it."""
        self.processes.kill(name)
        self.processes.start(name)

    def revive(self) -> None:
        """Start what is not running, as a supervisor does, and wait until all of it answers."""
        self.processes.revive()
        self.await_ready()

    def await_ready(self) -> None:
        def ready() -> bool:
            self.processes.check()
            with suppress(httpx.TransportError):
                return self.api.get("/readyz").status_code == 200
            return False

        wait_until(ready, READY_S, every_s=0.1, what="the stack's readiness")

    def latency(self, milliseconds: float) -> None:
        """How long every upstream call takes from now on, and nothing else is wrong with it."""
        self.script({"do": {"latency_ms": milliseconds}})

    def script(self, *rules: dict[str, Any], seed: int = 0) -> None:
        """What the upstream does wrong from now on: see providers/fake/script.py."""
        self.fake.put("/__script", content=orjson.dumps({"rules": rules, "seed": seed})).raise_for_status()

    @cached_property
    def stranger(self) -> dict[str, str]:
        """The headers of a caller of another project."""
        made = orjson.loads(self.processes.run("keys", "create", "--project", "stranger", "--json"))
        return {"authorization": f"Bearer {made['key']}"}

    def stats(self) -> dict[str, Any]:
        """What the fake upstream has counted."""
        body: dict[str, Any] = self.fake.get("/__stats").json()
        return body

    def calls_with(self, hashes: Iterable[str]) -> list[dict[str, Any]]:
        """Those of the bill with at least one of these inputs."""
        return self.bill_log.with_inputs(hashes)

    def bill(self) -> list[dict[str, Any]]:
        """What the fake upstream charges for, call by call."""
        return self.bill_log.lines()

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
        wait_until(lambda: (self.polled(job_id) or NOTHING_YET)["counts"]["completed"] >= completed, 60, what=what)

    def await_end(self, job_id: str, timeout_s: float) -> None:
        wait_until(lambda: (self.polled(job_id) or NOTHING_YET)["finished_at"], timeout_s, what=f"the end of {job_id}")

    def polled(self, job_id: str) -> dict[str, Any] | None:
        """The job; None where the answer was to come again, as pollers are told during an outage."""
        with suppress(httpx.TransportError):
            answer = self.api.get(f"/v1/embeddings/jobs/{job_id}")
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                body: dict[str, Any] = answer.json()
                return body
        return None

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
        """Ask the database itself, or tell it."""
        if self.database_url.startswith("sqlite"):
            path = self.database_url.removeprefix("sqlite:///")
            with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
                return connection.execute(text).fetchall()

        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.database_url)
            try:
                return [tuple(row) for row in await connection.fetch(text)]
            finally:
                await connection.close()

        return run_async(ask())


def api_names(count: int) -> list[str]:
    return ["api", *(f"api-{number}" for number in range(1, count))]


def free_port() -> int:
    """Below the ports that outgoing connections get, so that none of those takes it before its server does."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def seconds_until(condition: Callable[[], object], timeout_s: float, what: str) -> float:
    """How long it took."""
    started = time.monotonic()
    wait_until(condition, timeout_s, what=what, every_s=0.05)
    return time.monotonic() - started
