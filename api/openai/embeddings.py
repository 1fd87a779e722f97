"""POST /v1/embeddings: parse, run, render. Formats of other clients share all but the first and the last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request
from starlette.responses import Response

from api.http import media_types, request_body
from api.http.auth import runtime_of
from api.http.errors import CLIENT_GONE
from api.openai import embeddings_request, embeddings_response
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embedding_run import run_embedding

Parse = Callable[[Request, bytes], Awaitable[EmbeddingCall]]
Render = Callable[[Request, EmbeddingOutcome], Awaitable[Response]]


async def create_embeddings(request: Request) -> Response:
    """Embed the inputs of the body now; an input without a vector fails the request with its error."""
    return await answer(request, embeddings_request.parse, embeddings_response.render)


async def answer(request: Request, parse: Parse, render: Render) -> Response:
    """Answer a sync request in its client's format: `parse` gets the body, `render` an outcome without errors.

    The body counts against its project's budget of bytes until the answer is rendered.
    """
    runtime = runtime_of(request)
    if (kind := media_types.media_type(request)) != media_types.JSON:
        raise media_types.unsupported(kind, [media_types.JSON])
    with request_body.body_lease(request) as lease:
        raw = await request_body.read_body_under_lease(request, runtime.settings.max_body_bytes, lease)
        call = await parse(request, raw)
        try:
            outcome = await run_embedding(request, call)
        except asyncio.CancelledError:
            if request.scope.get("client_gone"):
                return Response(status_code=CLIENT_GONE)
            raise
        return await render(request, outcome)
