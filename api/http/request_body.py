"""Request bodies, limited in size, in time, and in the memory that all of them take together."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from fastapi import Request
from starlette.requests import ClientDisconnect

from api.http import media_types
from api.http.auth import caller_of, runtime_of
from api.http.request_headers import header
from engine.corpus.lines import GzipDecoder, IdentityDecoder
from engine.corpus.parser import Decoder
from engine.corpus.zstd import ZstdDecoder
from engine.observability.telemetry import BODY_REFUSALS
from engine.process.memory_budget import ByteLease
from models.errors import BodyTooSlow, PayloadTooLarge, UnsupportedMediaType

TOO_LARGE = (
    "The body is larger than {limit} bytes. Stream a large corpus as application/x-ndjson to /v1/embeddings/jobs."
)
# What a body unpacks to beyond this is unpacked in the work threads, where each tenant has its turn.
UNPACKED_INLINE_BYTES = 64 * 1024
# In the scope: whether the client has hung up before the end of its body. A server that cannot tell leaves it out.
IS_CUT_OFF = "embedmill.is_cut_off"


def check_client(request: Request) -> None:
    """Raises ClientDisconnect if the client disconnected while it sent the body: then processing of it ends."""
    is_cut_off: Callable[[], bool] | None = request.scope.get(IS_CUT_OFF)
    if is_cut_off is not None and is_cut_off():
        raise ClientDisconnect


def body_decoder(request: Request) -> Decoder:
    """The decoder for the body's Content-Encoding. Raises UnsupportedMediaType, also for another charset than UTF-8."""
    content_type = header(request, b"content-type")
    if ";" in content_type:
        media_types.require_utf8(content_type)
    encoding = header(request, b"content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return GzipDecoder(max_ratio=runtime_of(request).settings.max_compression_ratio)
    if encoding == "zstd":
        return ZstdDecoder(max_ratio=runtime_of(request).settings.max_compression_ratio)
    if encoding in ("", "identity"):
        return IdentityDecoder()
    raise UnsupportedMediaType(
        f"Content-Encoding '{encoding[:40]}' is not supported: compress the body with gzip or zstd, "
        "or send it as it is, without this header.",
        param="content-encoding",
    )


async def read_body(request: Request, limit: int) -> bytes:
    """The whole decoded body. Raises as `read_body_under_lease` does."""
    with body_lease(request) as lease:
        return await read_body_under_lease(request, limit, lease)


def body_lease(request: Request) -> ByteLease:
    """A lease on the budget of bytes for the body's project. Use it as a context manager."""
    return runtime_of(request).bodies.lease(caller_of(request).project)


async def read_body_under_lease(request: Request, limit: int, lease: ByteLease) -> bytes:
    """The whole decoded body; its bytes are counted under the lease as long as that is open.

    Raises PayloadTooLarge once it is over the limit, BodyTooSlow, and RateLimited or Overloaded when the requests of
    the project, or of all, hold too much.
    """
    length = header(request, b"content-length")
    if length and (not length.isdigit() or int(length) > limit):
        raise PayloadTooLarge(TOO_LARGE.format(limit=limit))
    decoder = body_decoder(request)
    # How long a connection may be silent is bounded by its own clock: a body in one piece needs no second one.
    first_chunk = await _next_chunk(request)
    if first_chunk.is_last and isinstance(decoder, IdentityDecoder) and len(first_chunk.data) <= limit:
        if not lease.try_resize(len(first_chunk.data)):
            await lease.resize(len(first_chunk.data))
        return first_chunk.data
    timeout_s = runtime_of(request).settings.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_rest(request, first_chunk, decoder, limit, lease)
    except TimeoutError:
        raise _too_slow(
            f"The body did not arrive within {timeout_s:g} seconds: "
            "send a smaller one, or stream it as application/x-ndjson to /v1/embeddings/jobs."
        ) from None


async def _read_rest(request: Request, chunk: _Chunk, decoder: Decoder, limit: int, lease: ByteLease) -> bytes:
    parts: list[bytes] = []
    size = 0
    work, project = runtime_of(request).work, caller_of(request).project
    while True:
        steps = decoder.feed(chunk.data)
        while True:
            if isinstance(decoder, IdentityDecoder) or size < UNPACKED_INLINE_BYTES:
                part = next(steps, None)
            else:
                part = await work.run(project, functools.partial(next, steps, None))
            if part is None:
                break
            check_client(request)
            size += len(part)
            if size > limit:
                raise PayloadTooLarge(TOO_LARGE.format(limit=limit))
            if not lease.try_resize(size):
                await lease.resize(size)
            parts.append(part)
        if chunk.is_last:
            break
        chunk = await _next_chunk(request)
    decoder.finish()
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Chunk(NamedTuple):
    data: bytes
    is_last: bool


async def _next_chunk(request: Request) -> _Chunk:
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return _Chunk(message.get("body", b""), not message.get("more_body", False))


class SlowBody(NamedTuple):
    """What a caller is advised whose body took too long, and whose body arrives too slowly."""

    noun: str
    late: str
    slow: str


SLOW_CORPUS = SlowBody(
    "corpus",
    "send it as several jobs",
    "send it again, faster; under the same Idempotency-Key it goes on where it was cut",
)
SLOW_FILE = SlowBody("file", "send it as an upload in parts", "send it again, faster, or as an upload in parts")


async def raw_chunks(request: Request, slow_body: SlowBody = SLOW_CORPUS) -> AsyncIterator[bytes]:
    """The raw body as it arrives, never whole in memory. Raises BodyTooSlow; only the wait for bytes counts."""
    settings = runtime_of(request).settings
    deadline = time.monotonic() + settings.upload_timeout_s
    window_s, window_bytes = 0.0, 0
    stream = aiter(request.stream())
    next_chunk: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            since = time.monotonic()
            if next_chunk is None:
                # A task of its own, which a timeout does not cancel: a cancelled stream has no next chunk.
                next_chunk = asyncio.ensure_future(_next(stream))
            remaining_s = min(deadline - since, settings.upload_window_s - window_s)
            done, _ = await asyncio.wait({next_chunk}, timeout=max(remaining_s, 0.0))
            window_s += time.monotonic() - since
            if done:
                chunk = next_chunk.result()
                next_chunk = None
                if chunk is None:
                    return
                window_bytes += len(chunk)
                if chunk:
                    yield chunk
            if time.monotonic() >= deadline:
                limit = f"within {settings.upload_timeout_s:g} seconds"
                raise _too_slow(f"The {slow_body.noun} did not arrive {limit}: {slow_body.late}.")
            if window_s >= settings.upload_window_s:
                if window_bytes < settings.upload_min_bytes_per_s * window_s:
                    rate = f"less than {settings.upload_min_bytes_per_s:g} bytes a second"
                    raise _too_slow(f"The {slow_body.noun} arrives at {rate}: {slow_body.slow}.")
                window_s, window_bytes = 0.0, 0
    finally:
        if next_chunk is not None:
            next_chunk.cancel()


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


def _too_slow(message: str) -> BodyTooSlow:
    BODY_REFUSALS.labels(BodyTooSlow.code).inc()
    return BodyTooSlow(message)
