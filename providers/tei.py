"""Text Embeddings Inference by its native API, which can forbid that inputs are cut. Vectors come as a bare array.

Sources: text-embeddings-inference 1.9.3 `router/src/http/{server,types}.rs`, docs/openapi.json (2026-07). The limits
are the server's defaults: its flags `--max-client-batch-size`, `--max-batch-tokens` and `--payload-limit` change them.
"""

from __future__ import annotations

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, embedding_reply, float_rows, header_count
from providers.json_request import json_request
from providers.traits import MappedField, Traits

TRUNCATE = MappedField("truncate", {"none": False, "mean": False, "end": True})

_REPLY = msgspec.json.Decoder(Vectors)


def feature_body(batch: Batch) -> dict[str, object]:
    """The inputs, and from which side too long ones are cut. Hugging Face's router takes the same."""
    body: dict[str, object] = {"inputs": batch.inputs}
    if batch.options.truncate == "end":
        body["truncation_direction"] = "Right"
    return body


class TeiProvider(JsonProvider):
    """POST /embed. A server serves one model: the route's model is not sent."""

    traits = Traits(
        kind="tei",
        title="Text Embeddings Inference (Hugging Face), its native API",
        limits=Limits(inputs_per_call=32, tokens_per_input=8192, tokens_per_call=16_384, bytes_per_call=2_000_000),
        base_url="http://127.0.0.1:3000",
        path="/embed",
        accepts_tokens=True,
        width_field="dimensions",
        truncate=TRUNCATE,
        body={"normalize": True},
        order="position",
        source="text-embeddings-inference 1.9.3, 2026-07",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The inputs, always as a list."""
        return json_request(self.traits, self.traits.path, feature_body(batch), batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """A list of vectors; tokens are in the header `x-compute-tokens`."""
        vectors = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        counts = header_count(reply.headers, "x-compute-tokens")
        return embedding_reply(lambda: float_rows(vectors, batch, route), counts, batch)
