"""The API as a process of its own, with settings of the test's, and bare sockets to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from cli.up.child_process import dies_with_parent
from engine.access.keys import create_key
from engine.storage.database import Database
from tests.gateway import CONFIG, PEPPER
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
START_S = 100.0
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"
BODY = orjson.dumps({"model": "tiny", "input": ["a", "b"]})


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ApiProcess:
    """`embedmill api` on SQLite with the fake provider. `key` and `other_key` belong to two projects."""

    def __init__(self, migrated: Path, folder: Path, *, config: str = CONFIG, **settings: Any) -> None:
        database = folder / "embedmill.db"
        shutil.copyfile(migrated, database)
        (folder / "embedmill.toml").write_text(config)
        self.key, self.other_key = asyncio.run(_make_keys(f"sqlite+aiosqlite:///{database}"))
        self.port = free_port()
        self.url = self.health_url = f"http://127.0.0.1:{self.port}"
        self._log = folder / "api.log"
        ours = {
            "DATA_DIR": folder,
            "CONFIG": folder / "embedmill.toml",
            "KEY_PEPPER": PEPPER,
            "DRAIN_S": 0,
            **settings,
        }
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
        self._environment = inherited | {f"EMBEDMILL_{name.upper()}": str(value) for name, value in ours.items()}
        self.max_descriptors: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        limit = self.max_descriptors
        dies = dies_with_parent()

        def before_start() -> None:
            if limit is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
            if dies is not None:
                dies()

        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "api", "--port", str(self.port)],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                preexec_fn=before_start,
            )
        wait_until(lambda: self.process.poll() is not None or self._is_up(), START_S, what="the API's start")
        assert self.process.poll() is None, self.log
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def _is_up(self) -> bool:
        return self.answers(url=self.health_url)

    def answers(self, path: str = "/healthz", *, url: str = "", timeout_s: float = 5.0) -> bool:
        try:
            with urllib.request.urlopen((url or self.url) + path, timeout=timeout_s) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def connect(self, timeout_s: float = 30.0, *, receive_bytes: int | None = None) -> socket.socket:
        connection = socket.socket()
        if receive_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(timeout_s)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def head(self, method: str, path: str, *fields: str, key: str | None = None) -> bytes:
        """A request's head, its blank line included."""
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Authorization: Bearer {key or self.key}", *fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


class Reply:
    """One HTTP/1.1 answer read from a bare socket; `is_last` when the server said that it closes."""

    def __init__(self, connection: socket.socket, *, has_body: bool = True) -> None:
        file = connection.makefile("rb", buffering=0)
        status = _line(file)
        assert status.startswith(b"HTTP/1.1 "), status
        self.status = int(status.split()[1])
        self.headers: dict[str, str] = {}
        while line := _line(file):
            name, _, value = line.decode("latin-1").partition(":")
            self.headers[name.lower()] = value.strip()
        self.is_last = self.headers.get("connection", "").lower() == "close"
        self.body = b""
        if has_body:
            left = int(self.headers.get("content-length", "0"))
            while left:
                piece = file.read(left)
                assert piece, "the connection was closed in the middle of an answer"
                self.body += piece
                left -= len(piece)

    @property
    def error(self) -> dict[str, Any]:
        document = orjson.loads(self.body)
        assert set(document) == {"error"} and set(document["error"]) == {"message", "type", "param", "code"}
        assert self.headers["x-request-id"].startswith("req_")
        error: dict[str, Any] = document["error"]
        return error


def is_closed(connection: socket.socket) -> bool:
    """True when the server has closed it: reads to its end, which must come before the socket's timeout."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def _line(file: Any) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        byte = file.read(1)
        assert byte, f"the connection was closed behind {line!r}"
        line += byte
    return line[:-2]


async def _make_keys(url: str) -> tuple[str, str]:
    database = Database(url)
    try:
        _, key = await create_key(database, PEPPER.encode())
        _, other = await create_key(database, PEPPER.encode(), project="other")
    finally:
        await database.close()
    return key, other


def flood(connection: socket.socket, piece: bytes, total_bytes: int) -> None:
    """Send the piece again and again, until the server has had enough."""
    sent = 0
    try:
        while sent < total_bytes:
            connection.sendall(piece)
            sent += len(piece)
    except (ConnectionError, TimeoutError):
        pass
