"""Perplexity: OpenAI's wire format with vectors of int8 under base64, never of float32.

The numbers of a vector are its int8 values as they are, so no vector is of unit length. They are read as float32 and
brought to length 1 here: only directions carry a meaning, and every caller expects unit vectors.

Sources: vercel/ai packages/perplexity (2026-08).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pybase64

from models.embedding import Batch, Limits, Matrix, Route
from models.errors import UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest, wrong_width
from providers.json_provider import JsonProvider
from providers.json_reply import check_presence, decode_reply, embedding_reply, in_order
from providers.json_request import json_request
from providers.openai_reply import usage_counts
from providers.traits import Traits


class _Item(msgspec.Struct):
    embedding: str | None = None
    index: Any = None


class _Reply(msgspec.Struct):
    data: list[_Item]
    model: Any = None
    usage: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class PerplexityProvider(JsonProvider):
    """POST /v1/embeddings."""

    traits = Traits(
        kind="perplexity",
        title="Perplexity",
        # 512 texts and 32,768 tokens a text; 120,000 tokens a call: M.
        limits=Limits(
            inputs_per_call=512, tokens_per_input=32_768, tokens_per_call=120_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://api.perplexity.ai",
        path="/v1/embeddings",
        key_variables=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        width_field="dimensions",  # from 128
        body={"encoding_format": "base64_int8"},
        source="vercel/ai packages/perplexity 2026-08",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts, with the fields of the table."""
        body: dict[str, object] = {"model": route.upstream_model, "input": batch.inputs}
        return json_request(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`data[].embedding` in the order of `index`, as unit vectors; tokens are `usage.prompt_tokens`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        items = answer.data
        return embedding_reply(
            lambda: _unit_rows(
                [item.embedding for item in in_order(items, [item.index for item in items], batch)], batch.width, route
            ),
            usage_counts(answer.usage),
            batch,
            answer.model,
        )


def _unit_rows(texts: Sequence[str | None], width: int, route: Route | None) -> Matrix:
    """Base64 of int8 as rows of length 1; zeros stay zeros. Raises UpstreamProtocolError for another width, or null."""
    check_presence(texts)
    try:
        parts = [pybase64.b64decode(text or "", validate=True) for text in texts]
    except ValueError:
        raise UpstreamProtocolError("a vector of the reply is not valid base64") from None
    if set(map(len, parts)) - {width}:
        raise wrong_width([len(part) for part in parts], width, route)
    rows = np.frombuffer(b"".join(parts), dtype=np.int8).astype(np.float32).reshape(len(parts), width)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    lengths[lengths == 0] = 1
    rows /= lengths[:, np.newaxis]
    return rows
