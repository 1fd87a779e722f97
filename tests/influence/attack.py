"""What an act of a hostile caller is made of: bare connections, requests, and a count of what came back.

Bare, so that an act can send what no HTTP library would, and so that it costs little beside what it attacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import orjson

JOBS = "/v1/embeddings/jobs"
SYNC = "/v1/embeddings"
NDJSON = {"content-type": "application/x-ndjson"}
JSON = {"content-type": "application/json"}
GZIP = {"content-encoding": "gzip"}
GRACE_S = 20.0
LOOK_S = 0.05
CLOSED = 0  # counted in place of a status, where the server closed without one


@dataclass
class Attack:
    """One caller's hostile act, until its time is over. All that it opens is closed when it ends."""

    host: str
    port: int
    key: str
    model: str
    job_id: str  # a finished job of this caller, with some thousands of results
    refused_job_id: str  # and one with a million inputs that were refused
    victims_key: str  # the Idempotency-Key that the other tenant uses meanwhile
    ends_at: float  # on time.monotonic()
    must: frozenset[int]  # it goes on until each of these statuses has come, at the most for GRACE_S more
    statuses: Counter[int] = field(default_factory=Counter)
    number: int = 0  # of this act: texts of two acts differ

    def __post_init__(self) -> None:
        self._fresh = itertools.count()

    @property
    def left_s(self) -> float:
        is_through = self.must <= self.statuses.keys()
        return self.ends_at + (0.0 if is_through else GRACE_S) - time.monotonic()

    def fresh(self, name: str = "text") -> str:
        """A text that no call has sent before."""
        return f"{name} {self.number} {next(self._fresh)}"

    def body(self, given: object, **fields: object) -> bytes:
        return orjson.dumps({"model": self.model, "input": given, **fields})

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=64 * 1024)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def head(self, method: str, path: str, headers: Mapping[str, str] | None = None, length: int | str = 0) -> bytes:
        """A request's head. `length`: of its body in bytes, or `chunked`."""
        framing = {"transfer-encoding": "chunked"} if length == "chunked" else {"content-length": str(length)}
        fields = {"host": "gateway", "authorization": f"Bearer {self.key}", **framing, **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Send one request and read its answer whole; its status is counted."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with self.connection() as (reader, writer):
                # The answer may come before the body is through: a server need not read what it refuses.
                writer.write(self.head(method, path, {"connection": "close", **(headers or {})}, len(body)) + body)
                status = int((await reader.readuntil(b"\r\n")).split()[1])
                self.statuses[status] += 1
                answer = await reader.read(-1)
                return status, answer.partition(b"\r\n\r\n")[2]
        self.statuses[CLOSED] += 1
        return CLOSED, b""

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return await self.request("POST", path, body, JSON | dict(headers or {}))

    async def upload(self, body: bytes, headers: Mapping[str, str] | None = None, query: str = "") -> tuple[int, bytes]:
        return await self.request("POST", f"{JOBS}?model={self.model}{query}", body, NDJSON | dict(headers or {}))

    async def hold(self) -> None:
        """Do nothing until the end, with whatever is open."""
        await asyncio.Event().wait()

    async def crowd(self, count: int, each: Callable[[], Awaitable[object]]) -> None:
        """So many at once, each again and again until the end."""

        async def one() -> None:
            while self.left_s > 0:
                await each()

        await asyncio.gather(*(one() for _ in range(count)))


Act = Callable[[Attack], Awaitable[None]]


async def perform(act: Act, attack: Attack) -> None:
    """Run the act to the end of its time."""
    acting = asyncio.ensure_future(act(attack))
    while attack.left_s > 0 and not acting.done():
        await asyncio.wait({acting}, timeout=LOOK_S)
    acting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await acting
