"""The OpenAI wire format: OpenAI itself and every compatible server, by base URL.

Sources: openai/openai-openapi (2026-08), openai-python 3.52 `resources/embeddings.py`. Replies are read in
`openai_reply.py`; what an error means is the table of `error_map.py`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from models.errors import UpstreamError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest, json_headers, max_reply_bytes_of
from providers.caller_options import sendable_options
from providers.error_envelope import error_facts, facts_of
from providers.error_map import error_from
from providers.openai_reply import read_reply
from providers.rate_limit_headers import RateLimitHeaders, parse_rate_limit_headers

_ENCODER = msgspec.json.Encoder()


class OpenAIProvider:
    """OpenAI's embeddings API."""

    # 2,048 inputs, 8,192 tokens an input and 300,000 a call: openai-openapi 2026-08. The byte limit is ours: an upper
    # bound of the size of such a call.
    limits = Limits(
        inputs_per_call=2048, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
    )
    accepts_tokens = True
    default_base_url = "https://api.openai.com/v1"

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """POST {base}/embeddings, asking for base64: a quarter of the bytes and a tenth of the parsing."""
        body: dict[str, object] = {
            "model": route.upstream_model,
            "input": batch.inputs[0] if batch.is_bare_string else batch.inputs,
        }
        # Without the field every server gives floats, and some servers refuse the field.
        if route.encoding == "base64":
            body["encoding_format"] = "base64"
        # Some compatible servers refuse `dimensions` even when it is the native width: sent only when it narrows.
        if batch.width != route.width:
            body["dimensions"] = batch.width
        if batch.options.user:
            body["user"] = batch.options.user
        if batch.options.provider_options and (extra := sendable_options(batch.options.provider_options, route)):
            body = {**extra, **body}
        return UpstreamRequest(
            "POST",
            f"{route.account.base_url}/embeddings",
            json_headers(route.account),
            _ENCODER.encode(body),
            max_reply_bytes_of(batch),
        )

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Read `data[]` by index. Floats are accepted where a server ignores `encoding_format`."""

        def error_in_success(document: dict[str, Any]) -> UpstreamError:
            # Gateways answer 200 and put the upstream's error inside (OpenRouter, 2026-08).
            error = document["error"]
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            return error_from(facts_of(status, document), reply.headers)

        return read_reply(reply.body, batch, route, error_in_success)

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """Structured code and status first, then words where vendors give nothing else."""
        return error_from(error_facts(reply.status, reply.body), reply.headers)

    def rate_limits(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """OpenAI's `x-ratelimit-*` headers, which many compatible servers send too."""
        return parse_rate_limit_headers(reply.headers)
