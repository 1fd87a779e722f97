"""Text Embeddings Inference by golden pairs: what is sent byte for byte, and what replies and errors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
import pytest

from models.embedding import Account, Batch, Input, Limits, Options, Route
from models.errors import (
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamTooLarge,
)
from providers.base import EmbeddingReply, UpstreamReply, check_embedded
from providers.tei import TeiProvider

PROVIDER = TeiProvider()
ACCOUNT = Account("gpu", "tei", "http://127.0.0.1:3000")
ROUTE = Route(ACCOUNT, "BAAI/bge-m3", 1024, PROVIDER.traits.limits, Decimal(0), accepts_tokens=True)


def batch(inputs: Sequence[Input] = ("hello",), width: int = 1024, *, bare: bool = False, **options: Any) -> Batch:
    return Batch(list(inputs), range(len(inputs)), 1, width, Options(**options), is_bare_string=bare)


def body(asked: Batch) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(PROVIDER.request(asked, ROUTE).body)
    return sent


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich", "b"]), ROUTE)
    assert (request.method, request.url) == ("POST", "http://127.0.0.1:3000/embed")
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    assert request.body == '{"normalize":true,"inputs":["Zürich","b"],"truncate":false}'.encode()


def test_the_key_of_a_server_that_wants_one() -> None:
    keyed = dataclasses.replace(ROUTE, account=dataclasses.replace(ACCOUNT, api_key="k"))
    assert PROVIDER.request(batch(), keyed).headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (batch(["a"], bare=True), {"inputs": ["a"], "truncate": False}),
        (batch([[1, 2]], bare=True), {"inputs": [[1, 2]], "truncate": False}),
        (batch(["a", [1, 2]]), {"inputs": ["a", [1, 2]], "truncate": False}),
        (batch(width=256), {"inputs": ["hello"], "truncate": False, "dimensions": 256}),
        (batch(truncate="end"), {"inputs": ["hello"], "truncate": True, "truncation_direction": "Right"}),
        (batch(truncate="mean"), {"inputs": ["hello"], "truncate": False}),
        (batch(input_type="query"), {"inputs": ["hello"], "truncate": False}),  # by the engine's templates
        (batch(user="u-7"), {"inputs": ["hello"], "truncate": False}),
        (
            batch(provider_options={"tei": {"prompt_name": "query", "normalize": False, "truncate": True}}),
            {"inputs": ["hello"], "truncate": False, "prompt_name": "query"},
        ),
        (batch(provider_options={"gpu": {"inputs": ["x"]}}), {"inputs": ["hello"], "truncate": False}),
    ],
)
def test_bodies(asked: Batch, sent: dict[str, Any]) -> None:
    assert body(asked) == {"normalize": True, **sent}


def test_limits_of_a_server_without_flags() -> None:
    assert PROVIDER.traits.limits == Limits(32, 8192, 16_384, 2_000_000)
    assert PROVIDER.traits.accepts_tokens and PROVIDER.traits.input_type is None


def read(document: object, count: int = 2, headers: dict[str, str] | None = None) -> EmbeddingReply:
    asked = batch(["a text of many words"] * count, width=2)
    by = dataclasses.replace(ROUTE, width=2)
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    embedded = PROVIDER.parse_reply(UpstreamReply(200, headers or {}, raw), asked, by)
    check_embedded(embedded, embedded.vectors, asked, by)
    return embedded


@pytest.mark.parametrize(
    ("header", "tokens", "is_doubted"),
    [("12", 12, False), (None, None, False), ("0", None, False), ("many", None, True), ("99999", None, True)],
)
def test_a_reply_and_its_tokens(header: str | None, tokens: int | None, is_doubted: bool) -> None:
    embedded = read([[1, 2], [3, 4]], headers={} if header is None else {"x-compute-tokens": header})
    assert embedded.vectors.tolist() == [[1, 2], [3, 4]]
    assert embedded.tokens == tokens and (embedded.tokens_doubt is not None) == is_doubted


@pytest.mark.parametrize(
    "document",
    [
        [[1, 2]],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2], [3, 4, 5]],
        [[1, 2], None],
        [[1, 2], [3, None]],
        b"[[1,2],[3,NaN]]",
        [1, 2],
        [[[1, 2]], [[3, 4]]],
        [["1", "2"], ["3", "4"]],
        {"data": [{"embedding": [1, 2]}, {"embedding": [3, 4]}]},
    ],
)
def test_anything_but_one_good_vector_an_input(document: object) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(document)


def test_a_200_with_an_error_in_it() -> None:
    with pytest.raises(UpstreamError) as raised:
        read({"error": "Model is overloaded", "error_type": "Overloaded"})
    assert not isinstance(raised.value, UpstreamProtocolError) and raised.value.retryable


@pytest.mark.parametrize("status", [413, 422])
def test_validation_by_the_servers_words(status: int) -> None:
    """Version 1.9 made 422 of the 413 of those before."""

    def error(message: str) -> UpstreamError:
        reply = UpstreamReply(status, {}, orjson.dumps({"error": message, "error_type": "Validation"}))
        return PROVIDER.error_from(reply)

    too_many = error("batch size 64 > maximum allowed batch size 32")
    assert isinstance(too_many, UpstreamTooLarge) and too_many.limit == "inputs"
    assert error("Input validation error: `inputs` must have less than 512 tokens. Given: 516").code == "input_too_long"


def test_errors_that_are_not_json() -> None:
    refused = PROVIDER.error_from(UpstreamReply(401, {}, b""))
    assert isinstance(refused, UpstreamAuthFailed)
    too_large = PROVIDER.error_from(UpstreamReply(413, {}, b"length limit exceeded"))
    assert isinstance(too_large, UpstreamTooLarge) and too_large.limit == "bytes"
    assert isinstance(PROVIDER.error_from(UpstreamReply(503, {}, b"Unhealthy")), UpstreamOverloaded)
