"""Streams of results: in the budget of a key, compressed where the client takes that."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack

from fastapi import Request
from starlette.responses import Response

from api.http.auth import budgets_of, caller_of
from api.http.compression import VARY, chosen_coding, compressed_stream, must_compress
from api.http.concurrency_limits import BudgetedStream

NDJSON = "application/x-ndjson"
Body = AsyncIterator[bytes | memoryview] | AsyncIterator[bytes]


async def stream_response(
    request: Request, start: Callable[[Request], Awaitable[tuple[Body, str, dict[str, str]]]]
) -> Response:
    """The body that `start` opens, as a stream, with its media type and headers.

    Raises RateLimited or Overloaded before anything is read, and what `start` raises.
    """
    streams, key_id = budgets_of(request).streams, caller_of(request).key_id
    streams.acquire(key_id)
    with ExitStack() as undo:  # until the response takes its place in the budget over
        undo.callback(streams.release, key_id)
        body, media_type, headers = await start(request)
        is_compressible = media_type == NDJSON and request.query_params.get("encoding_format") != "base64"
        if is_compressible or must_compress(request):
            headers |= VARY
            if coding := chosen_coding(request):
                headers.pop("content-length", None)
                body, headers = compressed_stream(coding, body), headers | {"content-encoding": coding}
        response = BudgetedStream(streams, key_id, body, media_type=media_type, headers=headers)
        undo.pop_all()
    return response
