"""One call of an adapter to the fake of its kind, in process: what the tests of the fakes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from models.embedding import Account, Batch, Limits, Options, Route
from providers import PROVIDERS
from providers.base import EmbeddingReply, UpstreamRequest, check_embedded
from providers.fake import FakeAnswer, FakeScript, FakeUpstream, fake_tokens
from providers.fake.formats import FAKE_KINDS, fake_format

NOW = 1_700_000_000.0
KEY = "sk-fake"
WIDTH = 16
TEXTS = ["red", "green grass", "blue"]
# Kinds whose adapters are there; the others have a fake already.
KINDS = tuple(kind for kind in FAKE_KINDS if kind in PROVIDERS)
# The model of each kind that its adapter takes for one of a family; of the others any name will do.
MODELS = {
    "bedrock": "amazon.titan-embed-text-v2:0",
    "google": "gemini-embedding-001",
    "vertex": "gemini-embedding-001",
    "voyage": "voyage-4-large",
}


@dataclass(frozen=True, slots=True)
class Exchange:
    """An adapter and the fake that it calls."""

    kind: str
    fake: FakeUpstream
    route: Route

    def request(self, texts: Sequence[str], width: int = WIDTH, options: Options | None = None) -> UpstreamRequest:
        return PROVIDERS[self.kind].request(self.batch(texts, width, options), self.route)

    def batch(self, texts: Sequence[str], width: int = WIDTH, options: Options | None = None) -> Batch:
        tokens, size = sum(map(fake_tokens, texts)), sum(len(text.encode()) for text in texts)
        return Batch(texts, range(len(texts)), tokens, width, options or Options(), size)

    def answer(self, texts: Sequence[str], width: int = WIDTH, options: Options | None = None) -> FakeAnswer:
        return self.fake.answer(self.request(texts, width, options), NOW)

    def embed(self, texts: Sequence[str], width: int = WIDTH, options: Options | None = None) -> EmbeddingReply:
        """The vectors, checked as every reply is. Raises the adapter's error."""
        reply, provider = self.answer(texts, width, options).reply, PROVIDERS[self.kind]
        if reply.status != 200:
            raise provider.error_from(reply)
        batch = self.batch(texts, width, options)
        embedded = provider.parse_reply(reply, batch, self.route)
        check_embedded(embedded, embedded.vectors, batch, self.route)
        return embedded

    def model(self) -> str:
        return self.route.upstream_model


def exchange(
    kind: str,
    *rules: Mapping[str, Any],
    oddities: Sequence[str] = (),
    model: str | None = None,
    encoding: str = "base64",
    key: str = KEY,
    body: Mapping[str, Any] | None = None,
    models: Mapping[str, int] | None = None,
) -> Exchange:
    """The adapter of the kind, and a fake that plays these rules and oddities and knows KEY."""
    wire = fake_format(kind, frozenset(oddities))
    fake = FakeUpstream(FakeScript.parse(list(rules)), WIDTH, models=models, api_key=KEY, wire_format=wire)
    account = Account("acme", kind, f"http://fake{wire.base_path}", key, encoding=encoding, body=body or {})
    name = model or MODELS.get(kind, "m")
    return Exchange(kind, fake, Route(account, name, WIDTH, Limits(), Decimal(0), encoding=encoding))


def narrowed(side: Exchange, is_fixed: bool) -> Exchange:
    """The same with a model that cannot be narrowed."""
    route = dataclasses.replace(side.route, upstream_model=f"{side.model()}-fixed") if is_fixed else side.route
    return dataclasses.replace(side, route=route)


def of_tokens(count: int) -> str:
    """A text of so many tokens of the fake."""
    return "x" * (4 * count)
