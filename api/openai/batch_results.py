"""GET /v1/batches/{batch_id}/results: the lines of a batch in the order of its input, while it runs too."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import caller_of, runtime_of
from api.http.result_stream import NDJSON, ResultStream, stream_response
from engine.batches.results import ResultsReader
from engine.files.composition import files_of

MAX_LIMIT = 1_000_000


async def get_batch_results(request: Request) -> Response:
    """The results of a batch, one JSON object a line."""
    params.reject_unknown_params(request, "limit", "after")
    return await stream_response(request, _start)


async def _start(request: Request) -> ResultStream:
    runtime, batch_id = runtime_of(request), request.path_params["batch_id"]
    limit = params.int_param(request, "limit", low=1, high=MAX_LIMIT)
    reader = ResultsReader(runtime.store, files_of(runtime), runtime.work, caller_of(request).project)
    results = await reader.open(batch_id, after=request.query_params.get("after"), limit=limit)
    headers = {
        "x-embedmill-complete": "true" if results.is_complete else "false",
        "cache-control": "no-store",
        "content-disposition": f'attachment; filename="{batch_id}_results.jsonl"',
    }
    return ResultStream(_joined(results.lines), NDJSON, headers)


async def _joined(lines: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    async for page in lines:
        yield b"".join(page)
