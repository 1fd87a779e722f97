"""Cloudflare Workers AI, its own API. Vectors come in the order of the texts; no usage is reported.

Replies and errors share one envelope: `success`, `result` and `errors`, each error with a number.

Sources: developers.cloudflare.com "Workers AI" and its "Errors" (2026-07).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from models.embedding import Batch, Limits, Route
from models.errors import UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.error_envelope import ErrorFacts, facts_of
from providers.error_list import error_document, first_error
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, embedding_reply, float_rows
from providers.json_request import json_request
from providers.traits import Setting, Traits

# Numbers of errors: the status that goes with each, and the code by which the table knows it.
_NUMBERS: Mapping[int, tuple[int, str | None]] = {
    5007: (400, "model_not_found"),
    3042: (404, "model_not_found"),  # M
    3036: (429, "insufficient_quota"),  # the allocation of the day; M
    3040: (429, None),  # no capacity; M
    3006: (413, None),  # M
    3007: (408, None),  # M
    10000: (401, None),  # M
}


class _Result(msgspec.Struct):
    data: Vectors


class _Reply(msgspec.Struct):
    result: _Result
    success: Any = True
    errors: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class CloudflareProvider(JsonProvider):
    """POST /ai/run/{model}."""

    traits = Traits(
        kind="cloudflare",
        title="Cloudflare Workers AI",
        # 100 texts; 8,192 tokens are those of bge-m3 and qwen3-embedding, the bge-*-en models take 512. None is known
        # for a call: the number is ours.
        limits=Limits(
            inputs_per_call=100, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://api.cloudflare.com/client/v4/accounts/{account_id}",
        path="/ai/run/{model}",
        key_variables=("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY"),
        settings={"account_id": Setting("the id of the Cloudflare account")},
        order="position",
        usage="none",
        source="developers.cloudflare.com Workers AI 2026-07",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts. The model is a part of the path, slashes and all: @cf/baai/bge-m3."""
        path = self.traits.path.replace("{model}", quote(route.upstream_model, safe="@/"))
        return json_request(self.traits, path, {"text": batch.inputs}, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`result.data`, where `success` does not say otherwise."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        if answer.success is False:
            error = self.error_in_success(reply, {"success": False, "errors": answer.errors})
            raise error or UpstreamProtocolError("the reply says that it failed")
        return embedding_reply(lambda: float_rows(answer.result.data, batch, route), (), batch)

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """The first of `errors`, where `success` is false."""
        error = _first_error(error_document(reply.body))
        if not error:
            return super().facts(reply)
        _, code = _NUMBERS.get(_number(error), (0, None))
        return facts_of(reply.status, {"error": {**error, "code": code or error.get("code")}})

    def status_in_success(self, document: Any) -> int | None:
        """The status that goes with the number of the first of `errors`."""
        error = _first_error(document)
        return _NUMBERS.get(_number(error), (502, None))[0] if error else super().status_in_success(document)


def _first_error(document: Any) -> Mapping[str, Any]:
    """The first error of a document in Cloudflare's envelope: another server's `errors` are not its words."""
    return first_error(document) if isinstance(document, dict) and document.get("success") is False else {}


def _number(error: Mapping[str, Any]) -> int:
    number = error.get("code")
    return number if isinstance(number, int) else 0
