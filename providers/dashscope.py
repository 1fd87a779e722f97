"""Alibaba's DashScope, its native API. Vectors come in any order, each with the index of its text.

Sources: dashscope Python SDK, Alibaba Model Studio "Embedding" (2026-11).
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider, error_status
from providers.json_reply import Vector, decode_reply, embedding_reply, float_rows, in_order
from providers.json_request import completed, post
from providers.openai_reply import usage_counts
from providers.traits import MappedField, Traits


class _Item(msgspec.Struct):
    embedding: Vector = None
    text_index: Any = None


class _Output(msgspec.Struct):
    embeddings: list[_Item]


class _Reply(msgspec.Struct):
    output: _Output
    usage: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class DashScopeProvider(JsonProvider):
    """POST /api/v1/services/embeddings/text-embedding/text-embedding."""

    traits = Traits(
        kind="dashscope",
        title="Alibaba DashScope (Model Studio)",
        # 10 texts and 8,192 tokens a text: text-embedding-v3 and v4. A call's tokens are the product of the two.
        limits=Limits(
            inputs_per_call=10, tokens_per_input=8192, tokens_per_call=81_920, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://dashscope.aliyuncs.com",
        path="/api/v1/services/embeddings/text-embedding/text-embedding",
        key_variables=("DASHSCOPE_API_KEY",),
        width_field="dimension",
        input_type=MappedField("text_type", {"query": "query", "document": "document"}),  # left out it is document
        source="dashscope SDK, Alibaba Model Studio 2026-11",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts in `input`; the fields of the table and the caller's options (`instruct`) in `parameters`."""
        body: dict[str, object] = {"model": route.upstream_model, "input": {"texts": batch.inputs}}
        if parameters := completed(self.traits, {}, batch, route):
            body["parameters"] = parameters
        return post(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`output.embeddings` in the order of `text_index`; tokens are `usage.total_tokens`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        items = answer.output.embeddings
        return embedding_reply(
            lambda: float_rows(
                [item.embedding for item in in_order(items, [item.text_index for item in items], batch)], batch, route
            ),
            usage_counts(answer.usage),
            batch,
        )

    def status_in_success(self, document: Any) -> int | None:
        """Its errors are flat: a `code` and a `message`, and no `output`."""
        if isinstance(document, dict) and document.get("code") and not document.get("output"):
            return error_status(document.get("status_code"))
        return super().status_in_success(document)
