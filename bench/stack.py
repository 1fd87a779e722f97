"""The product's own processes around a fake upstream, started as an operator would, in a folder that is thrown away."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from bench.client import BenchError, Client
from bench.measure import Tree
from bench.postgres import BenchDatabase
from cli.data_dir import DataDir
from cli.up.child_process import dies_with_parent
from cli.up.embedded_valkey import set_up_valkey

REPOSITORY = Path(__file__).parents[1]
MODEL = "bench/1536"
WIDTH = 1536
READY_WITHIN_S = 240.0

CONFIGURATION = """
[providers.up]
kind = "openai"
base_url = "{url}"

[models."bench/1536"]
dimensions = 1536
space = "bench"
input_usd_per_million_tokens = "0.02"

[[models."bench/1536".routes]]
provider = "up"
model = "bench"
"""


class Stack:
    """Fake upstream, Valkey, API, worker and scheduler; stopped, and their data removed, on exit."""

    def __init__(
        self, postgres_url: str | None = None, *, configuration: str = CONFIGURATION, worker_processes: int = 2
    ) -> None:
        self._configuration = configuration
        self._worker_processes = worker_processes
        self.database_name = "postgres" if postgres_url else "sqlite"
        self._postgres = BenchDatabase(postgres_url) if postgres_url else None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="embedmill-bench-"))
        self.fake = Client("http://127.0.0.1:0")
        self.api = Client("http://127.0.0.1:0")
        self._environment: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def database(self) -> str:
        """Name and version of the database."""
        if self._postgres:
            return f"PostgreSQL {self._postgres.version}"
        import sqlite3

        return f"SQLite {sqlite3.sqlite_version}"

    @property
    def database_url(self) -> str:
        return self._postgres.url if self._postgres else f"sqlite:///{self.folder / 'data' / 'embedmill.db'}"

    def latency(self, low_ms: float, jitter_ms: float = 0.0) -> None:
        """How long every upstream call takes from now on."""
        rules = [{"do": {"latency_ms": low_ms, "jitter_ms": jitter_ms}}]
        self.fake.call("PUT", "/__script", orjson.dumps(rules))

    def client_of(self, project: str) -> Client:
        """A client with a key of another project."""
        key = orjson.loads(self._run_once("keys", "create", "--project", project, "--json"))["key"]
        return Client(self.api.url, key)

    def trees(self) -> list[Tree]:
        """All processes of the system, the fake upstream too, and PostgreSQL's where it runs on this machine."""
        trees = [Tree(name, process.pid) for name, process in self._processes.items()]
        if self._postgres and self._postgres.server:
            trees.append(self._postgres.server)
        return trees

    def tree(self, name: str) -> Tree:
        """One of them."""
        return Tree(name, self._processes[name].pid)

    def pin(self, cores: dict[str, set[int]]) -> None:
        """Keep processes, their threads and their children to cores; "" names all that are not named."""
        for name in self._processes:
            for pid in self.tree(name).pids():
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), cores.get(name, cores[""]))

    def stop(self, names: Iterable[str]) -> None:
        """End some of the processes for good."""
        for name in names:
            if process := self._processes.pop(name, None):
                process.terminate()
                try:
                    process.wait(25)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def log_of(self, name: str) -> str:
        """The last lines that a process wrote."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-25:]) if path.exists() else ""

    def close(self) -> None:
        """Stop everything and remove all data."""
        self.stop(["scheduler", "worker", "api", "fake", "valkey"])
        if self._postgres:
            self._postgres.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start_all(self) -> None:
        data = DataDir(self.folder / "data")
        data.make()
        fake_port, api_port = _free_port(), _free_port()
        self.fake = Client(f"http://127.0.0.1:{fake_port}")
        config = self.folder / "bench.toml"
        config.write_text(self._configuration.format(url=f"http://127.0.0.1:{fake_port}/v1"))
        valkey = set_up_valkey(data)
        kept = {name: value for name, value in os.environ.items() if not re.match("EMBEDMILL_|CELERY_", name)}
        self._environment = kept | {
            "EMBEDMILL_DATA_DIR": str(data.path),
            "EMBEDMILL_REDIS_URL": valkey.url,
            "EMBEDMILL_CONFIG": str(config),
            "EMBEDMILL_LOG_LEVEL": "WARNING",
        }
        if self._postgres:
            self._postgres.open()
            self._environment["EMBEDMILL_DATABASE_URL"] = self._postgres.url
        self._start(
            "fake", ["-m", "cli.fake_upstream", "--port", str(fake_port), "--log", str(self.folder / "bill.ndjson")]
        )
        self._start("valkey", valkey.command, python=False)
        self._run_once("migrate")
        key = orjson.loads(self._run_once("keys", "create", "--json"))["key"]
        self.api = Client(f"http://127.0.0.1:{api_port}", key)
        self._start("api", ["-m", "cli", "api", "--port", str(api_port)])
        self._start("worker", ["-m", "cli", "worker", "--concurrency", str(self._worker_processes)])
        self._start("scheduler", ["-m", "cli", "scheduler"])
        self._await_ready()

    def _start(self, name: str, command: Sequence[str], *, python: bool = True) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *command] if python else list(command),
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=dies_with_parent(),
            )

    def _run_once(self, *arguments: str) -> bytes:
        command = [sys.executable, "-m", "cli", *arguments]
        ran = subprocess.run(command, cwd=REPOSITORY, env=self._environment, capture_output=True, check=False)
        if ran.returncode:
            raise BenchError(f"embedmill {' '.join(arguments)} failed:\n{ran.stderr.decode(errors='replace')}")
        return ran.stdout

    def _await_ready(self) -> None:
        give_up_at = time.monotonic() + READY_WITHIN_S
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise BenchError(f"{name} ended with status {process.returncode}:\n{self.log_of(name)}")
            try:
                self.api.call("GET", "/readyz")
                self.fake.call("GET", "/healthz")
                return
            except (OSError, BenchError) as error:
                if time.monotonic() > give_up_at:
                    raise BenchError(f"not ready after {READY_WITHIN_S:g} s: {error}\n{self.log_of('api')}") from error
            time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
