"""Calls of adapters for their golden tests: a batch, a route, the body that is sent, and a reply that is read."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson

from models.embedding import Account, Batch, Options, Route
from models.errors import UpstreamError
from providers.base import EmbeddingReply, Provider, UpstreamReply, check_embedded

HEADERS = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
INPUT_TYPES = ("query", "document", "classification", "clustering", "similarity", "code_query", "of no provider")


def batch(inputs: Sequence[str] = ("a", "b"), width: int = 4, **options: Any) -> Batch:
    return Batch(list(inputs), range(len(inputs)), 1, width, Options(**options))


def route(
    provider: Provider, base_url: str, model: str = "m", *, key: str | None = "k-1", width: int = 4, **account: Any
) -> Route:
    """A route of an account that is named `main`."""
    kind = provider.traits.kind
    return Route(
        Account("main", kind, base_url, key, **account), model, width, provider.traits.limits, Decimal(1), alias="al"
    )


def sent(provider: Provider, call: Batch, by: Route) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(provider.request(call, by).body)
    return body


def read(provider: Provider, document: object, call: Batch, by: Route) -> EmbeddingReply:
    """A reply as the engine reads it; bytes are the reply's as they are."""
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    embedded = provider.parse_reply(UpstreamReply(200, {}, body), call, by)
    check_embedded(embedded, embedded.vectors, call, by)
    return embedded


def error_of(provider: Provider, status: int, document: object) -> UpstreamError:
    return provider.error_from(UpstreamReply(status, {}, orjson.dumps(document)))
