"""The OpenAI wire format: OpenAI itself, and every compatible server as a row of `openai_compatible.py`.

Sources: openai/openai-openapi (2026-08), openai-python 3.52 `resources/embeddings.py`. Replies are read in
`openai_reply.py`; what an error means is the table of `error_map.py`.
"""

from __future__ import annotations

from urllib.parse import quote

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_request import json_request
from providers.openai_reply import read_reply
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


class OpenAIProvider(JsonProvider):
    """OpenAI's embeddings API, as far as `traits` does not say otherwise."""

    def __init__(self, traits: Traits = OPENAI) -> None:
        self.traits = traits

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """POST the inputs, asking for base64 where there is one: a quarter of the bytes and a tenth of the parsing."""
        is_bare = batch.is_bare_string and self.traits.takes_bare_string
        body: dict[str, object] = {
            "model": route.upstream_model,
            "input": batch.inputs[0] if is_bare else batch.inputs,
        }
        return json_request(self.traits, self.path(route), body, batch, route)

    def path(self, route: Route) -> str:
        """The path below the account's address."""
        path = self.traits.path
        return path.replace("{model}", quote(route.upstream_model, safe="")) if "{" in path else path

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Read `data[]` by index. Floats are accepted where a server ignores `encoding_format`."""

        embedded = read_reply(reply.body, batch, route, lambda document: self.error_in_success(reply, document))
        return embedded if self.traits.usage == "tokens" else embedded._replace(tokens=None, tokens_doubt=None)
