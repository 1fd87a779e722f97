"""Cohere's embed API, version 2. Vectors come in the order of the texts.

Sources: cohere-openapi.yaml (2026-08-20), cohere-python 7.3, docs.cohere.com "Errors" and "Rate limits" (2026-11).
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, base64_rows, decode_reply, embedding_reply, float_rows
from providers.json_request import json_request
from providers.traits import MappedField, Traits

INPUT_TYPES = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}


class ByType(msgspec.Struct):
    """Vectors by the type that was asked for."""

    float: Vectors | None = None
    base64: list[str] | None = None


class _Reply(msgspec.Struct):
    embeddings: ByType
    meta: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class CohereProvider(JsonProvider):
    """POST /v2/embed."""

    traits = Traits(
        kind="cohere",
        title="Cohere",
        # 96 texts; 128,000 tokens of a call are what Oracle's hosting of the same model takes. Cohere names no number.
        limits=Limits(
            inputs_per_call=96, tokens_per_input=128_000, tokens_per_call=128_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://api.cohere.com",
        path="/v2/embed",
        key_variables=("COHERE_API_KEY", "CO_API_KEY"),
        width_field="output_dimension",
        base64=("embedding_types", ["base64"]),
        floats=("embedding_types", ["float"]),
        # The field is required: without a word of the caller it says what most inputs are.
        input_type=MappedField("input_type", INPUT_TYPES, default="search_document"),
        truncate=MappedField("truncate", {"none": "NONE", "mean": "NONE", "end": "END"}),
        order="position",
        source="cohere-openapi 2026-08, cohere-python 7.3",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts, with the fields of the table."""
        body: dict[str, object] = {"model": route.upstream_model, "texts": batch.inputs}
        return json_request(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`embeddings.base64` or `.float`; tokens are `meta.billed_units.input_tokens`, which may be missing."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        by_type = answer.embeddings
        return embedding_reply(
            lambda: (
                float_rows(by_type.float or [], batch, route)
                if by_type.base64 is None
                else base64_rows(by_type.base64, batch, route)
            ),
            _billed(answer.meta),
            batch,
        )


def _billed(meta: Any) -> tuple[object, ...]:
    units = meta.get("billed_units") if isinstance(meta, dict) else None
    tokens = units.get("input_tokens") if isinstance(units, dict) else None
    return () if tokens is None else (tokens,)
