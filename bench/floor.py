"""The least that a bulk job could cost: read texts, call the upstream, decode, write fsynced .npy shards. Nothing else.

A process of its own, without keys, queue, database, retries or checks: `python -m bench.floor URL TEXTS.ndjson FOLDER`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec
import numpy as np
import orjson
import pybase64
import uvloop

from bench.load import raw_request
from engine.process.allocator_tuning import keep_large_buffers

BATCH, SHARD, CALLERS, WIDTH = 128, 1024, 32, 1536


class _Item(msgspec.Struct):
    embedding: str
    index: int


class _Reply(msgspec.Struct):
    data: list[_Item]


class _Caller(asyncio.Protocol):
    """One connection; `ask` sends a request and waits for the body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes) -> bytes:
        self.parser = httptools.HttpResponseParser(self)
        self.chunks: list[bytes] = []
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answered

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() == 200:
            self.answered.set_result(b"".join(self.chunks))
        else:
            self.answered.set_exception(RuntimeError(f"status {self.parser.get_status_code()}"))


async def embed_all(url: str, texts: list[str], folder: Path) -> None:
    """Embed all texts with 32 callers; the last batch of a shard writes it."""
    decoder, parts = msgspec.json.Decoder(_Reply), urlsplit(url)
    starts = iter(range(0, len(texts), BATCH))
    shards: dict[int, tuple[np.ndarray[tuple[int, int], np.dtype[np.float32]], list[int]]] = {}

    async def work() -> None:
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(_Caller, parts.hostname or "", parts.port or 80)
        for start in starts:
            batch = texts[start : start + BATCH]
            body = orjson.dumps({"model": "bench", "input": batch, "encoding_format": "base64"})
            request = raw_request("POST", f"{url}/v1/embeddings", {"content-type": "application/json"}, body)
            reply = decoder.decode(await caller.ask(request))
            number, place = divmod(start, SHARD)
            size = min(SHARD, len(texts) - number * SHARD)
            rows, left = shards.setdefault(number, (np.empty((size, WIDTH), dtype=np.float32), [size]))
            for item in reply.data:
                rows[place + item.index] = np.frombuffer(pybase64.b64decode(item.embedding, validate=True), dtype="<f4")
            left[0] -= len(batch)
            if not left[0]:
                with (folder / f"{number}.npy").open("wb") as file:
                    np.save(file, rows)
                    file.flush()
                    os.fsync(file.fileno())
                del shards[number]

    await asyncio.gather(*(work() for _ in range(CALLERS)))


def main() -> None:
    url, corpus, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    keep_large_buffers()
    cpu_s, started = time.process_time(), time.perf_counter()
    texts = [orjson.loads(line) for line in corpus.read_bytes().splitlines()]
    uvloop.run(embed_all(url, texts, folder))
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(orjson.dumps({"inputs": len(texts), "wall_s": wall_s, "cpu_s": cpu_s, "peak_rss_mb": peak_mb}).decode())


if __name__ == "__main__":
    main()
