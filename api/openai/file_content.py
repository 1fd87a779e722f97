"""GET /v1/files/{file_id}/content: the bytes of a file, or a range of them, as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from fastapi import Request
from sqlalchemy import Row
from starlette.responses import Response

from api.http import params
from api.http.auth import budgets_of, caller_of, runtime_of
from api.http.byte_range import ByteRange, requested_range
from api.http.concurrency_limits import BudgetedStream
from api.http.content_disposition import attachment
from engine.files.composition import files_of
from engine.files.read import get_file, read_file

MEDIA_TYPE = "application/octet-stream"


async def get_file_content(request: Request) -> Response:
    """The bytes of a file, as they were stored."""
    params.reject_unknown_params(request)
    streams, key_id = budgets_of(request).streams, caller_of(request).key_id
    store = files_of(runtime_of(request))
    row = await get_file(store, caller_of(request).project, request.path_params["file_id"])
    byte_range = _range_of(request, row)
    start, stop = (0, row.bytes) if byte_range is None else (byte_range.start, byte_range.stop)
    headers = {
        "content-length": str(stop - start),
        "content-disposition": attachment(row.filename),
        "accept-ranges": "bytes",
        "etag": _etag(row),
        "cache-control": "private, no-transform",
        "x-content-type-options": "nosniff",
    }
    if byte_range is not None:
        headers["content-range"] = byte_range.content_range
    streams.acquire(key_id)
    with ExitStack() as undo:  # until the response takes its place in the budget over
        undo.callback(streams.release, key_id)
        body = read_file(store, row.id, start, stop)
        first = await anext(body, b"")  # a store that is away is still answered with an error
        stream = BudgetedStream(
            streams,
            key_id,
            _joined(first, body),
            status_code=200 if byte_range is None else 206,
            media_type=MEDIA_TYPE,
            headers=headers,
        )
        undo.pop_all()
    return stream


def _range_of(request: Request, row: Row[Any]) -> ByteRange | None:
    """The range that the caller wants, unless it has a part of another file (If-Range). Raises RangeNotSatisfiable."""
    text = request.headers.get("range")
    if text is None or request.headers.get("if-range", _etag(row)).strip() != _etag(row):
        return None
    return requested_range(text, row.bytes)


def _etag(row: Row[Any]) -> str:
    return f'"{row.id}"'


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
