"""The OpenAI wire format: OpenAI itself, and every compatible server as a row of `openai_compatible.py`.

Sources: openai/openai-openapi (2026-08), openai-python 3.52 `resources/embeddings.py`. Replies are read in
`openai_reply.py`; what an error means is the table of `error_map.py`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from models.embedding import Batch, Limits, Route
from models.errors import UpstreamError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.error_envelope import error_facts, facts_of
from providers.error_map import error_from
from providers.json_request import json_request
from providers.openai_reply import read_reply
from providers.rate_limit_headers import RateLimitHeaders, parse_rate_limit_headers
from providers.traits import Traits

OPENAI = Traits(
    kind="openai",
    title="OpenAI, and any server that speaks its embeddings format",
    # 2,048 inputs, 8,192 tokens an input and 300,000 a call: openai-openapi 2026-08. The byte limit is ours: an upper
    # bound of the size of such a call.
    limits=Limits(inputs_per_call=2048, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024),
    base_url="https://api.openai.com/v1",
    key_variables=("OPENAI_API_KEY",),
    accepts_tokens=True,
    takes_bare_string=True,
    width_field="dimensions",
    # Without the field every server gives floats, and some servers refuse the field.
    base64=("encoding_format", "base64"),
    user_field="user",
    source="openai-openapi 2026-08, openai-python 3.52",
)


class OpenAIProvider:
    """OpenAI's embeddings API, as far as `traits` does not say otherwise."""

    def __init__(self, traits: Traits = OPENAI) -> None:
        self.traits = traits

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """POST the inputs, asking for base64 where there is one: a quarter of the bytes and a tenth of the parsing."""
        traits, options = self.traits, batch.options
        is_bare = batch.is_bare_string and traits.takes_bare_string
        body: dict[str, object] = {
            "model": route.upstream_model,
            "input": batch.inputs[0] if is_bare else batch.inputs,
        }
        if (encoding := traits.base64 if route.encoding == "base64" else traits.floats) is not None:
            body[encoding[0]] = encoding[1]
        # Some compatible servers refuse the width even when it is the native one: sent only when it narrows.
        if batch.width != route.width and traits.width_field is not None:
            body[traits.width_field] = batch.width
        for field, value in ((traits.input_type, options.input_type), (traits.truncate, options.truncate)):
            if field is not None and (word := field.of(value)) is not None:
                body[field.name] = word
        if options.user and traits.user_field is not None:
            body[traits.user_field] = options.user
        return json_request(traits, self.path(route), body, batch, route)

    def path(self, route: Route) -> str:
        """The path below the account's address."""
        path = self.traits.path
        return path.replace("{model}", quote(route.upstream_model, safe="")) if "{" in path else path

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Read `data[]` by index. Floats are accepted where a server ignores `encoding_format`."""

        def error_in_success(document: dict[str, Any]) -> UpstreamError:
            # Gateways answer 200 and put the upstream's error inside (OpenRouter, 2026-08).
            error = document["error"]
            code = error.get("code") if isinstance(error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            return error_from(facts_of(status, document), reply.headers)

        embedded = read_reply(reply.body, batch, route, error_in_success)
        return embedded if self.traits.usage == "tokens" else embedded._replace(tokens=None, tokens_doubt=None)

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """Structured code and status first, then words where vendors give nothing else."""
        return error_from(error_facts(reply.status, reply.body), reply.headers)

    def rate_limits(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """OpenAI's `x-ratelimit-*` headers, which many compatible servers send too."""
        return parse_rate_limit_headers(reply.headers)
