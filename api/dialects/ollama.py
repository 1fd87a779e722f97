"""Ollama's own calls (ollama 0.6): embed, the older embeddings, the list of models and the version."""

from __future__ import annotations

import importlib.metadata
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.body import read_body, read_text, read_texts
from api.dialects.dialect import DialectRoute, all_warnings, array, left_out, reply, width
from api.http.auth import runtime_of
from api.http.errors import ErrorFacts
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embeddings import answer
from api.openai.embeddings_response import encode_rows
from models.embedding import Options

# Ollama's name of the default variant: `tiny:latest` is `tiny`.
LATEST = ":latest"


class _Embed(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    input: msgspec.Raw
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class _Embeddings(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    prompt: msgspec.Raw
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


_EMBED = msgspec.json.Decoder(_Embed)
_EMBEDDINGS = msgspec.json.Decoder(_Embeddings)


class OllamaRoute(DialectRoute):
    """A route of Ollama's clients."""

    @staticmethod
    def error_body(facts: ErrorFacts) -> dict[str, Any]:
        """An error as one text."""
        return {"error": facts.message}


async def create_ollama_embed(request: Request) -> Response:
    """POST /api/embed."""
    started = time.perf_counter_ns()

    async def render(request: Request, outcome: EmbeddingOutcome) -> Response:
        vectors = array(await encode_rows(request, outcome, base64=False))
        elapsed = time.perf_counter_ns() - started
        counts = {"total_duration": elapsed, "load_duration": 0, "prompt_eval_count": outcome.tokens}
        return _reply([b'{"embeddings":', *vectors], {"model": outcome.call.model} | counts, outcome)

    return await answer(request, _parse_embed, render)


async def create_ollama_embeddings(request: Request) -> Response:
    """POST /api/embeddings: one text, one vector."""
    return await answer(request, _parse_embeddings, _render_one)


async def list_ollama_models(request: Request) -> Response:
    """GET /api/tags."""
    runtime = runtime_of(request)
    modified_at = datetime.fromtimestamp(runtime.configured_at, UTC).isoformat()
    models = [
        {
            "name": name,
            "model": name,
            "modified_at": modified_at,
            "size": 0,
            "digest": "",
            "details": {"format": "", "family": alias.space, "families": None, "parameter_size": ""},
        }
        for name, alias in sorted(runtime.aliases.items())
    ]
    return Response(orjson.dumps({"models": models}), media_type="application/json")


async def get_ollama_version(request: Request) -> Response:
    """GET /api/version."""
    return Response(orjson.dumps({"version": importlib.metadata.version("embedmill")}), media_type="application/json")


async def _parse_embed(request: Request, raw: bytes) -> EmbeddingCall:
    body, warnings = await read_body(request, raw, _EMBED)
    inputs = await read_texts(request, body.input, "input")
    options = Options(
        dimensions=width(body.dimensions, "dimensions"), truncate="none" if body.truncate is False else "end"
    )
    warnings += left_out("options", body.options or None) + left_out("keep_alive", body.keep_alive)
    model = _model(request, body.model)
    return EmbeddingCall(model, inputs, options, warnings=warnings, body_bytes=len(raw))


async def _parse_embeddings(request: Request, raw: bytes) -> EmbeddingCall:
    body, warnings = await read_body(request, raw, _EMBEDDINGS)
    prompt = await read_text(request, body.prompt, "prompt")
    warnings += left_out("options", body.options or None) + left_out("keep_alive", body.keep_alive)
    return EmbeddingCall(
        _model(request, body.model),
        prompt,
        Options(truncate="end"),
        warnings=warnings,
        input_field="prompt",
        body_bytes=len(raw),
    )


async def _render_one(request: Request, outcome: EmbeddingOutcome) -> Response:
    [vector] = await encode_rows(request, outcome, base64=False)
    return _reply([b'{"embedding":', vector], {}, outcome)


def _model(request: Request, name: str) -> str:
    """The model, without the name of its variant where it is known only so."""
    aliases = runtime_of(request).aliases
    return name.removesuffix(LATEST) if name not in aliases else name


def _reply(pieces: list[bytes], fields: dict[str, Any], outcome: EmbeddingOutcome) -> Response:
    if warnings := all_warnings(outcome):  # clients leave alone what they do not know
        fields["warnings"] = [each._asdict() for each in warnings]
    return reply(outcome, [*pieces, b"," + orjson.dumps(fields)[1:] if fields else b"}"])
