"""Snowflake Cortex. Each vector is the only element of a list; the models have no other width than their own.

Sources: litellm 1.109 snowflake/embedding, public clients of inference:embed (2026).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from models.errors import UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vector, decode_reply, embedding_reply, float_rows, in_order
from providers.json_request import json_request
from providers.openai_reply import usage_counts
from providers.traits import Setting, Traits

_USUAL_TYPE = "PROGRAMMATIC_ACCESS_TOKEN"
_TYPE_HEADER = "x-snowflake-authorization-token-type"


class _Item(msgspec.Struct):
    embedding: list[list[float | None] | float | None] | None = None
    index: Any = None


class _Reply(msgspec.Struct):
    data: list[_Item]
    model: Any = None
    usage: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class SnowflakeProvider(JsonProvider):
    """POST /api/v2/cortex/inference:embed."""

    traits = Traits(
        kind="snowflake",
        title="Snowflake Cortex",
        # 8,192 tokens are those of snowflake-arctic-embed-*-v2.0. The numbers of a call are ours: none is published.
        limits=Limits(
            inputs_per_call=64, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://{account}.snowflakecomputing.com",
        path="/api/v2/cortex/inference:embed",
        key_variables=("SNOWFLAKE_PAT", "SNOWFLAKE_JWT"),
        headers={_TYPE_HEADER: _USUAL_TYPE},
        settings={
            "account": Setting("the account identifier, the first part of its address"),
            "token_type": Setting("what the key is: PROGRAMMATIC_ACCESS_TOKEN, KEYPAIR_JWT or OAUTH", _USUAL_TYPE),
        },
        source="litellm 1.109",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts, with a header that says what the key is."""
        body: dict[str, object] = {"model": route.upstream_model, "text": batch.inputs}
        token_type = route.account.settings.get("token_type") or _USUAL_TYPE
        traits = self.traits
        if token_type != _USUAL_TYPE:
            traits = replace(traits, headers={_TYPE_HEADER: token_type})
        return json_request(traits, traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`data[].embedding[0]` in the order of `index`; tokens are those of `usage`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        items = answer.data
        return embedding_reply(
            lambda: float_rows(
                [_only_vector(item) for item in in_order(items, [item.index for item in items], batch)], batch, route
            ),
            usage_counts(answer.usage),
            batch,
            answer.model,
        )


def _only_vector(item: _Item) -> Vector:
    """The vector inside of the list, or the list itself where it holds numbers. Raises UpstreamProtocolError."""
    if not item.embedding or not any(isinstance(each, list) for each in item.embedding):
        return item.embedding  # type: ignore[return-value]  # no element is a list
    if len(item.embedding) != 1:
        raise UpstreamProtocolError("the reply holds several vectors for one input")
    return item.embedding[0]  # type: ignore[return-value]  # it is a list
