"""OpenAI's wire format by golden pairs: what is sent byte for byte, and what a good answer says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pytest

from models.embedding import Account, Batch, Input, Limits, Options, Route
from models.errors import (
    UpstreamProtocolError,
)
from providers.base import UpstreamReply
from providers.openai import OpenAIProvider

PROVIDER = OpenAIProvider()
ACCOUNT = Account("openai-main", "openai", "https://api.openai.com/v1", "sk-1")
ROUTE = Route(ACCOUNT, "text-embedding-3-small", 1536, Limits(), Decimal("0.02"), accepts_tokens=True)


def batch(inputs: Sequence[Input], width: int = 1536, *, is_bare_string: bool = False, **options: Any) -> Batch:
    return Batch(inputs, range(len(inputs)), 1, width, Options(**options), is_bare_string=is_bare_string)


def sent(asked: Batch, route: Route = ROUTE) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(PROVIDER.request(asked, route).body)
    return body


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich", "b"]), ROUTE)
    assert (request.method, request.url) == ("POST", "https://api.openai.com/v1/embeddings")
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer sk-1",
    }
    assert (
        request.body == '{"model":"text-embedding-3-small","input":["Zürich","b"],"encoding_format":"base64"}'.encode()
    )


def test_an_account_without_a_key_sends_none() -> None:
    keyless = dataclasses.replace(ROUTE, account=dataclasses.replace(ACCOUNT, api_key=None))
    assert "authorization" not in PROVIDER.request(batch(["a"]), keyless).headers


@pytest.mark.parametrize(
    ("asked", "input_sent"),
    [
        (batch(["a"], is_bare_string=True), "a"),
        (batch(["a"]), ["a"]),
        (batch([[1, 2]], is_bare_string=True), [1, 2]),
        (batch([[1, 2], [3]]), [[1, 2], [3]]),
    ],
)
def test_the_forms_of_input_go_as_they_came(asked: Batch, input_sent: object) -> None:
    assert sent(asked)["input"] == input_sent


def test_dimensions_only_when_they_narrow() -> None:
    assert "dimensions" not in sent(batch(["a"], 1536))
    assert sent(batch(["a"], 256))["dimensions"] == 256


def test_the_user_goes_along() -> None:
    assert sent(batch(["a"], user="u-1"))["user"] == "u-1" and "user" not in sent(batch(["a"]))


@pytest.mark.parametrize("name", ["openai-main", "openai"])
def test_provider_options_add_and_never_override(name: str) -> None:
    options = {name: {"model": "x", "input": ["y"], "encoding_format": "float", "seed": 3}, "cohere": {"other": 1}}
    body = sent(batch(["a"], provider_options=options))
    assert body == {"model": "text-embedding-3-small", "input": ["a"], "encoding_format": "base64", "seed": 3}


@pytest.mark.parametrize(
    ("embedding", "row"),
    [
        ("AACAPwAAAL8AAIA+AAAAAA==", [1.0, -0.5, 0.25, 0.0]),
        ("mpkZP83MTD8AAAAA", [0.6, 0.8, 0.0]),
        ([0.6, 0.8, 0], [0.6, 0.8, 0.0]),
    ],
)
def test_golden_vectors(embedding: object, row: list[float]) -> None:
    reply = {"data": [{"object": "embedding", "index": 0, "embedding": embedding}], "model": "served", "object": "list"}
    read = PROVIDER.parse_reply(UpstreamReply(200, {}, orjson.dumps(reply)), batch(["a"], len(row)))
    assert read.vectors.tolist() == np.array([row], dtype=np.float32).tolist()
    assert (read.upstream_model, read.tokens) == ("served", None)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 5, "total_tokens": 6}, 5),
        ({"total_tokens": 6}, 6),
        ({"prompt_tokens": 0, "total_tokens": 0}, None),
        (None, None),
        ({"prompt_tokens": -5, "total_tokens": -5}, None),
    ],
)
def test_what_usage_counts(usage: object, tokens: int | None) -> None:
    reply = {"data": [{"index": 0, "embedding": [1.0]}], "usage": usage}
    assert PROVIDER.parse_reply(UpstreamReply(200, {}, orjson.dumps(reply)), batch(["a"], 1)).tokens == tokens


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": [1.0]}],
        [{"index": 1, "embedding": [1.0]}, {"embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": None}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [[1.0]]}],
        [{"index": 0, "embedding": [1.0]}, {"index": "2", "embedding": [1.0]}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AACAPw"}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AACA Pw=="}],
    ],
)
def test_answers_that_are_no_openai_object(data: object) -> None:
    with pytest.raises(UpstreamProtocolError):
        PROVIDER.parse_reply(UpstreamReply(200, {}, orjson.dumps({"data": data})), batch(["a", "b"], 1))
