"""Nomic's Atlas API. Vectors come in the order of the texts.

Sources: nomic 3.9 embed.py, Portkey-AI/gateway providers/nomic (2026-05).
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, embedding_reply, float_rows
from providers.json_request import json_request
from providers.openai_reply import usage_counts
from providers.traits import MappedField, Traits

TASK_TYPES = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}


class _Reply(msgspec.Struct):
    embeddings: Vectors
    model: Any = None
    usage: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class NomicProvider(JsonProvider):
    """POST /v1/embedding/text."""

    traits = Traits(
        kind="nomic",
        title="Nomic Atlas",
        # 400 texts: M. None is known for the tokens of a call: the number is ours.
        limits=Limits(
            inputs_per_call=400, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://api-atlas.nomic.ai",
        path="/v1/embedding/text",
        key_variables=("NOMIC_API_KEY",),
        width_field="dimensionality",
        input_type=MappedField("task_type", TASK_TYPES),  # left out it is search_document
        # Its other mode, "mean", also embeds what is too long: there is no word for a refusal.
        truncate=MappedField("long_text_mode", {"end": "truncate"}),
        order="position",
        cuts_silently=True,
        detail_is_message=True,
        source="nomic 3.9, Portkey-AI/gateway 2026-05",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts, with the fields of the table."""
        body: dict[str, object] = {"model": route.upstream_model, "texts": batch.inputs}
        return json_request(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`embeddings`; tokens are `usage.prompt_tokens`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        return embedding_reply(
            lambda: float_rows(answer.embeddings, batch, route), usage_counts(answer.usage), batch, answer.model
        )
