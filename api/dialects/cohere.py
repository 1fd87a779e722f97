"""Cohere's embed calls, version 2 and 1 (cohere 7.3): vectors by type, and errors with a message alone."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api.dialects.body import ABSENT, is_there, only_item, read_body, read_items, read_texts
from api.dialects.dialect import DialectRoute, all_warnings, array, left_out, meaning_of, refuse, reply, width
from api.http.errors import ErrorFacts
from api.openai.client_fields import INPUT_TYPE_WORDS
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embeddings import answer
from api.openai.embeddings_response import encode_rows
from models.embedding import Options
from models.errors import InvalidInput

INPUT_TYPES = (*(word for word in INPUT_TYPE_WORDS if word != "passage"), "classification", "clustering")
TYPES = ("float", "base64")
TRUNCATE = {"NONE": "none", "END": "end"}  # START keeps the end of a text, and only ends are cut off here
TEXTS_ONLY = "inputs are texts here: send them in 'texts'"


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    texts: msgspec.Raw = ABSENT
    inputs: msgspec.Raw = ABSENT
    images: Any = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    truncate: str | None = None
    max_tokens: int | None = None
    priority: int | None = None


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    content: msgspec.Raw


class _Part(msgspec.Struct, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    image_url: Any = None


_BODY = msgspec.json.Decoder(_Body)
_INPUTS = msgspec.json.Decoder(list[_Input])
_PARTS = msgspec.json.Decoder(list[_Part])


class CohereRoute(DialectRoute):
    """A route of Cohere's clients."""

    @staticmethod
    def error_body(facts: ErrorFacts) -> dict[str, Any]:
        """An error as its message."""
        return {"message": facts.message}


async def create_cohere_embeddings_v2(request: Request) -> Response:
    """POST /v2/embed."""
    call = _CohereCall("2")
    return await answer(request, call.parse, call.render)


async def create_cohere_embeddings_v1(request: Request) -> Response:
    """POST /v1/embed: without `embedding_types` the reply is a list of vectors."""
    call = _CohereCall("1")
    return await answer(request, call.parse, call.render)


class _CohereCall:
    """One call: what of its request is in its reply again."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._types: list[str] = []  # none: vectors without a type
        self._texts = b"[]"  # as they were sent

    async def parse(self, request: Request, raw: bytes) -> EmbeddingCall:
        """The call of the body. Raises InvalidInput or UnsupportedParameter that names Cohere's field."""
        body, warnings = await read_body(request, raw, _BODY)
        refuse("images", body.images or None, TEXTS_ONLY)
        refuse("max_tokens", body.max_tokens, "texts are cut at the model's own limit: send 'truncate' alone")
        if body.input_type is not None and body.input_type not in INPUT_TYPES:
            raise _not_one_of("input_type", body.input_type, INPUT_TYPES)
        for kind in body.embedding_types or ():
            if kind not in TYPES:
                raise _not_one_of("embedding_types", kind, TYPES)
        self._types = list(dict.fromkeys(body.embedding_types or (["float"] if self._version == "2" else [])))
        name, inputs = await self._inputs(request, body)
        options = Options(
            dimensions=width(body.output_dimension, "output_dimension"),
            input_type=body.input_type and INPUT_TYPE_WORDS.get(body.input_type, body.input_type),
            truncate=meaning_of("truncate", body.truncate or "END", TRUNCATE),
        )
        warnings += left_out("priority", body.priority)
        return EmbeddingCall(body.model, inputs, options, warnings=warnings, input_field=name, body_bytes=len(raw))

    async def _inputs(self, request: Request, body: _Body) -> tuple[str, list[Any]]:
        """The name of the field that has the inputs, and these."""
        has_texts, has_inputs = is_there(body.texts), is_there(body.inputs)
        if has_texts == has_inputs:
            raise InvalidInput(
                "Send the inputs in one of 'texts' and 'inputs'.", param="texts", code="missing_required_parameter"
            )
        if has_texts:
            texts = await read_texts(request, body.texts, "texts")
            if isinstance(texts, str):
                raise InvalidInput("Invalid 'texts': expected a list of texts.", param="texts", code="invalid_type")
            self._texts = bytes(body.texts)
            return "texts", texts
        return "inputs", await read_items(request, body.inputs, "inputs", _INPUTS, _text_of)

    async def render(self, request: Request, outcome: EmbeddingOutcome) -> Response:
        """The reply: the vectors in each type that was requested."""
        pieces = [b'{"embeddings":', b"{" if self._types else b""]
        for position, kind in enumerate(self._types or ["float"]):
            if self._types:
                pieces.append(b'%b"%b":' % (b"," if position else b"", kind.encode()))
            rows = await encode_rows(request, outcome, base64=kind == "base64")
            pieces += array(rows, b'"', b'"') if kind == "base64" else array(rows)
        pieces += [b"}" if self._types else b"", b',"texts":', self._texts, b","]
        meta: dict[str, Any] = {
            "api_version": {"version": self._version},
            "billed_units": {"input_tokens": outcome.tokens},
        }
        if warnings := [f"{each.feature}: {each.details}" for each in all_warnings(outcome)]:
            meta["warnings"] = warnings
        tail = {
            "id": outcome.generation_id,
            "meta": meta,
            "response_type": "embeddings_by_type" if self._types else "embeddings_floats",
        }
        return reply(outcome, [*pieces, orjson.dumps(tail)[1:]])


def _text_of(item: _Input, index: int) -> str:
    """The one text of an item of `inputs`. Raises InvalidInput: several parts would become one vector."""
    part = only_item(item.content, _PARTS)
    if part is None or part.type != "text" or part.text is None:
        param = f"inputs[{index}].content"
        raise InvalidInput(
            f"Invalid '{param}': expected one part of type 'text'. Send texts only, each as an input of its own.",
            param=param,
            code="invalid_value",
        )
    return part.text


def _not_one_of(name: str, value: str, supported: tuple[str, ...]) -> InvalidInput:
    return InvalidInput(
        f"Invalid '{name}': '{value[:40]}' is not supported. Supported: {', '.join(supported)}.",
        param=name,
        code="invalid_value",
    )
