"""Streams of results: in the budget of a key, compressed where the client takes that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from typing import NamedTuple

from fastapi import Request
from starlette.responses import Response

from api.http.auth import budgets_of, caller_of
from api.http.compression import VARY, chosen_coding, compressed_stream, must_compress
from api.http.concurrency_limits import BudgetedStream

NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
Body = AsyncIterator[bytes | memoryview] | AsyncIterator[bytes]
# They are of the uncompressed bytes.
BYTE_RANGE_HEADERS = ("accept-ranges", "etag")


class ResultStream(NamedTuple):
    """An answer that can start: its headers are known, and nothing of its body is read."""

    body: Body
    media_type: str
    headers: dict[str, str]
    status_code: int = 200


async def stream_response(request: Request, start: Callable[[Request], Awaitable[ResultStream]]) -> Response:
    """What `start` opens, as a stream. A range of bytes is never compressed, nor is Parquet, which is inside.

    Raises RateLimited or Overloaded before anything is read, and what `start` raises.
    """
    streams, key_id = budgets_of(request).streams, caller_of(request).key_id
    streams.acquire(key_id)
    with ExitStack() as undo:  # until the response takes its place in the budget over
        undo.callback(streams.release, key_id)
        body, media_type, headers, status_code = await start(request)
        is_compressible = media_type == NDJSON and request.query_params.get("encoding_format") != "base64"
        if is_compressible or (media_type != PARQUET and status_code == 200 and must_compress(request)):
            headers |= VARY
            if coding := chosen_coding(request):
                for name in ("content-length", *BYTE_RANGE_HEADERS):
                    headers.pop(name, None)
                body, headers = compressed_stream(coding, body), headers | {"content-encoding": coding}
        response = BudgetedStream(
            streams, key_id, body, status_code=status_code, media_type=media_type, headers=headers
        )
        undo.pop_all()
    return response
