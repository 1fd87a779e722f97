"""The sync verb by paths that name the model: Azure's deployments, and the engines of OpenAI's first clients."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.openai import embeddings_request, embeddings_response
from api.openai.embedding_call import EmbeddingCall
from api.openai.embeddings import answer


async def create_deployment_embeddings(request: Request) -> Response:
    """POST /openai/deployments/{model}/embeddings, whatever its `api-version`."""
    return await answer(request, _parse, embeddings_response.render)


async def create_engine_embeddings(request: Request) -> Response:
    """POST /v1/engines/{model}/embeddings."""
    return await answer(request, _parse, embeddings_response.render)


async def _parse(request: Request, raw: bytes) -> EmbeddingCall:
    """The call of the body, on the model of the path: the body's own is not read."""
    return await embeddings_request.parse(request, raw, model=request.path_params["model"])
