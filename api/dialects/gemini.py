"""Google's Gemini API (google-genai 3.6): embedContent and batchEmbedContents, the key in a header or the query."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.body import only_item, read_body, read_items
from api.dialects.dialect import DialectRoute, all_warnings, array, meaning_of, refuse, reply, width
from api.http.errors import ErrorFacts
from api.http.key_headers import google_keys
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embeddings import answer
from api.openai.embeddings_response import encode_rows
from models.embedding import Options
from models.errors import InvalidInput

PREFIX = "models/"
UNSPECIFIED = "TASK_TYPE_UNSPECIFIED"
STATUSES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "UNAUTHENTICATED",
    HTTPStatus.FORBIDDEN: "PERMISSION_DENIED",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.CONFLICT: "ABORTED",
    HTTPStatus.TOO_MANY_REQUESTS: "RESOURCE_EXHAUSTED",
    HTTPStatus.NOT_IMPLEMENTED: "UNIMPLEMENTED",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
    HTTPStatus.GATEWAY_TIMEOUT: "DEADLINE_EXCEEDED",
}
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    parts: msgspec.Raw
    role: str | None = None


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    text: str


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """Both spellings of protocol buffers in JSON are taken, as Google does."""

    content: _Content
    model: str | None = None
    taskType: str | None = None  # noqa: N815  # the wire's spelling
    task_type: str | None = None
    title: str | None = None
    outputDimensionality: int | None = None  # noqa: N815
    output_dimensionality: int | None = None


class _Batch(msgspec.Struct, forbid_unknown_fields=True):
    requests: msgspec.Raw


_ONE = msgspec.json.Decoder(_Request)
_BATCH = msgspec.json.Decoder(_Batch)
_REQUESTS = msgspec.json.Decoder(list[_Request])
_PARTS = msgspec.json.Decoder(list[_Part])


class GeminiRoute(DialectRoute):
    """A route of Google's clients."""

    read_keys = staticmethod(google_keys)

    @staticmethod
    def error_body(facts: ErrorFacts) -> dict[str, Any]:
        """Google's envelope: the status as number and as word."""
        word = "INTERNAL" if facts.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "INVALID_ARGUMENT"
        error: dict[str, Any] = {
            "code": facts.status,
            "message": facts.message,
            "status": STATUSES.get(facts.status, word),
        }
        if facts.retry_after_s is not None:
            error["details"] = [{"@type": RETRY_INFO, "retryDelay": f"{facts.retry_after_s}s"}]
        return {"error": error}


async def create_gemini_embedding(request: Request) -> Response:
    """POST /v1beta/models/{model}:embedContent."""
    return await answer(request, _parse_one, _render_one)


async def create_gemini_embeddings(request: Request) -> Response:
    """POST /v1beta/models/{model}:batchEmbedContents."""
    return await answer(request, _parse_batch, _render_batch)


async def create_gemini_embedding_v1(request: Request) -> Response:
    """POST /v1/models/{model}:embedContent."""
    return await answer(request, _parse_one, _render_one)


async def create_gemini_embeddings_v1(request: Request) -> Response:
    """POST /v1/models/{model}:batchEmbedContents."""
    return await answer(request, _parse_batch, _render_batch)


async def _parse_one(request: Request, raw: bytes) -> EmbeddingCall:
    body, warnings = await read_body(request, raw, _ONE)
    options = _options(request, [body], "")
    text = _text_of(body.content, "content")
    model = request.path_params["model"]
    return EmbeddingCall(model, text, options, warnings=warnings, input_field="content", body_bytes=len(raw))


async def _parse_batch(request: Request, raw: bytes) -> EmbeddingCall:
    body, warnings = await read_body(request, raw, _BATCH)
    found = await read_items(request, body.requests, "requests", _REQUESTS, _with_text)
    options = _options(request, [each for each, _ in found], "requests") if found else Options()
    texts = [text for _, text in found]
    model = request.path_params["model"]
    return EmbeddingCall(model, texts, options, warnings=warnings, input_field="requests", body_bytes=len(raw))


def _options(request: Request, requests: Sequence[_Request], name: str) -> Options:
    """The options that all requests of a call have. Raises InvalidInput for one that differs from the first."""
    first = _own_options(requests[0])
    path_model = request.path_params["model"]
    for index, each in enumerate(requests):
        where = f"{name}[{index}]." if name else ""
        refuse(f"{where}title", each.title, "send it in the text")
        if each.model is not None and each.model.removeprefix(PREFIX) != path_model:
            raise _differs(f"{where}model", "the model of the path")
        if _own_options(each) != first:
            raise _differs(f"{where}taskType", f"{name}[0] in 'taskType' or 'outputDimensionality'")
    task, dimensions = first
    return Options(
        dimensions=width(dimensions, "outputDimensionality"),
        input_type=None if task in (None, UNSPECIFIED) else meaning_of("taskType", task),
        truncate="end",  # Google cuts what is too long
    )


def _own_options(each: _Request) -> tuple[str | None, int | None]:
    dimensions = each.outputDimensionality if each.outputDimensionality is not None else each.output_dimensionality
    return each.taskType or each.task_type, dimensions


def _differs(param: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"Invalid '{param}': it differs from {what}. Send what differs in another call.",
        param=param,
        code="invalid_value",
    )


def _text_of(content: _Content, param: str) -> str:
    parts = only_item(content.parts, _PARTS)
    if parts is None:
        raise InvalidInput(
            f"Invalid '{param}': expected one part with a 'text'. Send each text in a request of its own.",
            param=param,
            code="invalid_value",
        )
    return parts.text


def _with_text(each: _Request, index: int) -> tuple[_Request, str]:
    return each, _text_of(each.content, f"requests[{index}].content")


async def _render_one(request: Request, outcome: EmbeddingOutcome) -> Response:
    [vector] = await encode_rows(request, outcome, base64=False)
    return _reply([b'{"embedding":{"values":', vector, b"}"], outcome)


async def _render_batch(request: Request, outcome: EmbeddingOutcome) -> Response:
    rows = await encode_rows(request, outcome, base64=False)
    return _reply([b'{"embeddings":', *array(rows, b'{"values":', b"}")], outcome)


def _reply(pieces: list[bytes], outcome: EmbeddingOutcome) -> Response:
    tokens = outcome.tokens
    fields: dict[str, Any] = {
        "usageMetadata": {
            "promptTokenCount": tokens,
            "promptTokenDetails": [{"modality": "TEXT", "tokenCount": tokens}],
        }
    }
    if warnings := all_warnings(outcome):  # clients leave alone what they do not know
        fields["warnings"] = [each._asdict() for each in warnings]
    return reply(outcome, [*pieces, b",", orjson.dumps(fields)[1:]])
