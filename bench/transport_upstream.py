"""The fake upstream of the comparison of HTTP clients: good replies at no cost, and one misbehaviour for each path."""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from typing import ClassVar, cast

MEGABYTE = 1024 * 1024
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def embeddings_reply(inputs: int) -> bytes:
    vector = b'{"object":"embedding","index":0,"embedding":"' + b"A" * 8192 + b'"}'
    body = b'{"object":"list","data":[' + b",".join([vector] * inputs) + b'],"usage":{"total_tokens":9}}'
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-ID: req_0123456789\r\n"
        b"X-RateLimit-Remaining-Requests: 9999\r\nX-RateLimit-Remaining-Tokens: 999999\r\n"
    )
    return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)


def bomb_reply() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(200)) + packer.flush()
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class FakeUpstream(asyncio.Protocol):
    fixed: ClassVar[dict[bytes, bytes]] = {}
    requests: ClassVar[dict[str, int]] = {}
    hanging = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        import httptools

        self.transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.parser, self.path, self.seen = httptools.HttpRequestParser(self), b"", 0
        self.can_write = asyncio.Event()
        self.can_write.set()
        self.hangs = False

    def connection_lost(self, error: Exception | None) -> None:
        self.can_write.set()
        FakeUpstream.hanging -= self.hangs

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url

    def on_message_complete(self) -> None:
        reply = self.fixed.get(self.path)
        if reply is not None:
            self.transport.write(reply)
        if self.path == b"/1" or self.path == b"/128":
            return
        self.seen += 1
        name = self.path.decode()
        self.requests[name] = self.requests.get(name, 0) + 1
        match self.path:
            case b"/hang":
                self.hangs = True
                FakeUpstream.hanging += 1
            case b"/truncated":
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")
                self.transport.close()
            case b"/ask-once":  # the second request on a connection is read whole and then dropped
                self.transport.close() if self.seen > 1 else self.transport.write(OK)
            case b"/close-soon":  # a keep-alive that ends while the client may be reusing it
                self.transport.write(OK)
                asyncio.get_running_loop().call_later(random.random() * 0.002, self.transport.close)
            case b"/drip":
                self.task = asyncio.ensure_future(self.drip())
            case b"/flood-announced" | b"/flood-chunked":
                self.task = asyncio.ensure_future(self.flood(self.path == b"/flood-announced"))
            case b"/counters":
                body = json.dumps({"requests": self.requests, "hanging": FakeUpstream.hanging}).encode()
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async def drip(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not self.transport.is_closing():
            self.transport.write(b"x")
            await asyncio.sleep(0.2)

    async def flood(self, announced: bool) -> None:
        piece = bytes(65536)
        length = b"Content-Length: 209715200" if announced else b"Transfer-Encoding: chunked"
        self.transport.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n")
        for _ in range(3200):
            if self.transport.is_closing():
                return
            self.transport.write(piece if announced else b"10000\r\n" + piece + b"\r\n")
            await self.can_write.wait()
        self.transport.write(b"" if announced else b"0\r\n\r\n")


def serve() -> None:
    import uvloop

    FakeUpstream.fixed.update(
        {
            b"/1": embeddings_reply(1),
            b"/128": embeddings_reply(128),
            b"/ok": OK,
            b"/bomb": bomb_reply(),
            b"/redirect": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /redirected\r\nContent-Length: 2\r\n\r\nok",
            b"/redirected": OK,
        }
    )

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(FakeUpstream, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    uvloop.run(run())
