"""Ollama by its native API, which can forbid that inputs are cut. Its /v1 is a server of the kind `openai`.

Sources: ollama `server/routes.go`, docs/api.md (2026-08). An empty text gives no vector, and a width of the native one
or more is ignored: the checks of count and width find both.
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, embedding_reply, float_rows
from providers.json_request import json_request
from providers.traits import MappedField, Traits


class _Reply(msgspec.Struct):
    """`model` only repeats the request's."""

    embeddings: Vectors
    prompt_eval_count: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class OllamaProvider(JsonProvider):
    """POST /api/embed."""

    traits = Traits(
        kind="ollama",
        title="Ollama, its native API",
        # The server names no limit. It embeds one input after the other: small calls end within their time.
        limits=Limits(
            inputs_per_call=64, tokens_per_input=8192, tokens_per_call=65_536, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="http://127.0.0.1:11434",
        path="/api/embed",
        key_variables=("OLLAMA_API_KEY",),
        width_field="dimensions",
        truncate=MappedField("truncate", {"none": False, "mean": False, "end": True}),
        order="position",
        source="ollama server/routes.go and docs/api.md, 2026-08",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts, always as a list."""
        body: dict[str, object] = {"model": route.upstream_model, "input": batch.inputs}
        return json_request(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`embeddings`, one for each text; tokens are `prompt_eval_count`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        counts = () if answer.prompt_eval_count is None else (answer.prompt_eval_count,)
        return embedding_reply(lambda: float_rows(answer.embeddings, batch, route), counts, batch)
