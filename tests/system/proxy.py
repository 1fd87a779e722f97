"""A TCP proxy that breaks connections on purpose, between any two parts of the system. Its words are Toxiproxy's.

    with Proxy("127.0.0.1", 5432) as proxy:      # clients connect to proxy.port
        proxy.to_client.latency_s = 2.0          # from now on, also on connections that are open
        proxy.reset()                            # RST on every open connection
        proxy.down()                             # ... and new ones are refused, until
        proxy.up()

Everything is toggled at run time, per direction, from any thread.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")
CHUNK_BYTES = 64 * 1024
IN_FLIGHT_CHUNKS = 64
BLACK_HOLE_POLL_S = 0.02
CALL_S = 10.0


@dataclass
class Toxics:
    """What happens to the bytes of one direction. The defaults pass them on as they are."""

    latency_s: float = 0.0
    jitter_s: float = 0.0  # added to the latency, uniform; bytes never overtake each other
    bytes_per_s: float = 0.0  # slow: 0 is as fast as it goes
    slice_bytes: int = CHUNK_BYTES  # passed on in pieces of this size at the most
    limit_bytes: int | None = None  # limit_data: so much passes on each connection, then it ends
    timeout: bool = False  # a black hole: connections stay open and nothing passes
    # Reset the connection when these bytes come by: before they are passed on, or after.
    reset_on: bytes | None = None
    reset_after_passing: bool = False
    resets: int = field(default=0, init=False)  # how often reset_on has matched

    def clear(self) -> None:
        """No toxics any more; what was counted stays."""
        counted = self.resets
        self.__init__()  # type: ignore[misc]  # the defaults, whichever they are
        self.resets = counted


class Proxy:
    """Forwards one port to one address. Runs in a thread of its own."""

    def __init__(self, host: str, port: int, *, seed: int = 0) -> None:
        self.to_server, self.to_client = Toxics(), Toxics()
        self.accepted = 0
        self._target = (host, port)
        self._chance = random.Random(seed)
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.up()

    def up(self) -> None:
        """Take connections (again), on the same port."""
        self._call(self._listen())

    def down(self) -> None:
        """Refuse new connections and end the open ones."""
        self._call(self._refuse())

    def reset(self) -> int:
        """RST on every open connection; how many there were."""
        return self._call(self._reset_all())

    def stall(self) -> int:
        """Half-open for ever: nothing passes on the connections of now, later ones work. How many there are."""
        links = [*self._links]
        for link in links:
            link.stalled = True
        return len(links)

    def heal(self) -> None:
        """No toxics, and connections are taken."""
        self.to_server.clear()
        self.to_client.clear()
        self.up()

    @property
    def connections(self) -> int:
        return len(self._links)

    def close(self) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_S)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK_BYTES)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset_all()

    async def _reset_all(self) -> int:
        links = [*self._links]
        for link in links:
            link.reset()
        await asyncio.gather(*(link.ended.wait() for link in links))
        return len(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            far = await asyncio.open_connection(*self._target, limit=CHUNK_BYTES)
        except OSError:
            _abort(writer)
            return
        link = _Link((reader, writer), far)
        self._links.add(link)
        try:
            await link.run(self.to_server, self.to_client, self._chance.uniform)
        finally:
            self._links.discard(link)
            link.ended.set()


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One client's connection and the one to the server behind it."""

    def __init__(self, near: Stream, far: Stream) -> None:
        self._near, self._far = near, far
        self.stalled = False
        self.ended = asyncio.Event()

    async def run(self, to_server: Toxics, to_client: Toxics, uniform: Callable[[float, float], float]) -> None:
        there = asyncio.create_task(_Pipe(self, to_server, uniform).run(self._near[0], self._far[1]))
        back = asyncio.create_task(_Pipe(self, to_client, uniform).run(self._far[0], self._near[1]))
        try:
            await asyncio.gather(there, back)
        finally:
            there.cancel()
            back.cancel()
            self._near[1].close()
            self._far[1].close()

    def reset(self) -> None:
        _abort(self._near[1])
        _abort(self._far[1])

    def finish(self) -> None:
        """End both sides in the polite way, once what was written has gone out."""
        self._near[1].close()
        self._far[1].close()


class _Pipe:
    """One direction of one connection."""

    def __init__(self, link: _Link, toxics: Toxics, uniform: Callable[[float, float], float]) -> None:
        self._link = link
        self._toxics = toxics
        self._uniform = uniform
        self._passed = 0

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_CHUNKS)
        writing = asyncio.create_task(self._write(chunks, writer))
        reading = asyncio.create_task(self._read(chunks, reader))
        try:
            # Once nobody takes what is written, there is nothing to read for either.
            await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await writing
        finally:
            reading.cancel()
            writing.cancel()

    async def _read(self, chunks: asyncio.Queue[tuple[float, bytes]], reader: asyncio.StreamReader) -> None:
        clock = asyncio.get_running_loop().time
        with suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                delay_s = self._toxics.latency_s
                if self._toxics.jitter_s:
                    delay_s += self._uniform(0.0, self._toxics.jitter_s)
                await chunks.put((clock() + delay_s, data))
        await chunks.put((0.0, b""))

    async def _write(self, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        toxics, clock = self._toxics, asyncio.get_running_loop().time
        with suppress(OSError):
            while True:
                due, data = await chunks.get()
                if (left_s := due - clock()) > 0:
                    await asyncio.sleep(left_s)
                while toxics.timeout or self._link.stalled:
                    if writer.is_closing():
                        return
                    await asyncio.sleep(BLACK_HOLE_POLL_S)
                if not data:
                    break
                if toxics.reset_on is not None and toxics.reset_on in data:
                    await self._reset_at(data, writer)
                    return
                if not await self._pass(data, writer):
                    break
            if writer.can_write_eof():
                writer.write_eof()

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> bool:
        """Pass on what the limit allows; False when it is reached, and the connection ends."""
        toxics = self._toxics
        limit = toxics.limit_bytes
        if limit is not None:
            data = data[: max(0, limit - self._passed)]
        for start in range(0, len(data), max(1, toxics.slice_bytes)):
            piece = data[start : start + toxics.slice_bytes]
            writer.write(piece)
            await writer.drain()
            self._passed += len(piece)
            if toxics.bytes_per_s:
                await asyncio.sleep(len(piece) / toxics.bytes_per_s)
        if limit is not None and self._passed >= limit:
            self._link.finish()
            return False
        return True

    async def _reset_at(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        self._toxics.resets += 1
        self._toxics.reset_on = None
        if self._toxics.reset_after_passing:
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(BLACK_HOLE_POLL_S)  # the server must have read it before the RST overtakes it
        self._link.reset()


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with RST in place of FIN: a linger of 0 s does it."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
