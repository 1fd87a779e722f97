"""Hugging Face's router by golden pairs: what is sent byte for byte, and what replies and errors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
import pytest

from models.embedding import Account, Batch, Input, Limits, Options, Route
from models.errors import UpstreamError, UpstreamOverloaded, UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, check_embedded
from providers.huggingface import HuggingFaceProvider

PROVIDER = HuggingFaceProvider()
BASE = "https://router.huggingface.co"
ACCOUNT = Account("hf", "huggingface", BASE, "hf_1")
ROUTE = Route(ACCOUNT, "BAAI/bge-m3", 1024, PROVIDER.traits.limits, Decimal("0.01"))


def batch(inputs: Sequence[Input] = ("hello",), width: int = 1024, *, bare: bool = False, **options: Any) -> Batch:
    return Batch(list(inputs), range(len(inputs)), 1, width, Options(**options), is_bare_string=bare)


def body(asked: Batch) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(PROVIDER.request(asked, ROUTE).body)
    return sent


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich", "b"]), ROUTE)
    assert request.method == "POST"
    assert request.url == f"{BASE}/hf-inference/models/BAAI/bge-m3/pipeline/feature-extraction"
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": "Bearer hf_1",
    }
    assert request.body == '{"normalize":true,"inputs":["Zürich","b"],"truncate":false}'.encode()
    assert PROVIDER.traits.key_variables == ("HF_TOKEN",)


def test_a_models_name_is_encoded_but_for_its_slash() -> None:
    request = PROVIDER.request(batch(), dataclasses.replace(ROUTE, upstream_model="org/a b?c#d"))
    assert request.url == f"{BASE}/hf-inference/models/org/a%20b%3Fc%23d/pipeline/feature-extraction"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (batch(["a"], bare=True), {"inputs": ["a"], "truncate": False}),
        (batch(width=256), {"inputs": ["hello"], "truncate": False, "dimensions": 256}),
        (batch(truncate="end"), {"inputs": ["hello"], "truncate": True, "truncation_direction": "Right"}),
        (batch(input_type="query"), {"inputs": ["hello"], "truncate": False}),
        (batch(user="u-7"), {"inputs": ["hello"], "truncate": False}),
        (
            batch(provider_options={"hf": {"prompt_name": "query", "inputs": ["x"], "encoding_format": "base64"}}),
            {"inputs": ["hello"], "truncate": False, "prompt_name": "query"},
        ),
    ],
)
def test_bodies(asked: Batch, sent: dict[str, Any]) -> None:
    assert body(asked) == {"normalize": True, **sent}


def test_what_is_known_of_it() -> None:
    traits = PROVIDER.traits
    assert traits.limits == Limits(32, 8192, 16_384, 2_000_000)
    assert traits.usage == "none" and traits.input_type is None and not traits.accepts_tokens


def read(document: object, count: int = 2, headers: dict[str, str] | None = None) -> EmbeddingReply:
    asked = batch(["a text of many words"] * count, width=2)
    by = dataclasses.replace(ROUTE, width=2)
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    embedded = PROVIDER.parse_reply(UpstreamReply(200, headers or {}, raw), asked, by)
    check_embedded(embedded, embedded.vectors, asked, by)
    return embedded


def test_a_reply_has_no_tokens() -> None:
    embedded = read([[1, 2], [3, 4]], headers={"x-compute-tokens": "7"})
    assert embedded.vectors.tolist() == [[1, 2], [3, 4]]
    assert embedded.tokens is None and embedded.tokens_doubt is None


def test_a_flat_vector_for_one_input() -> None:
    assert read([1, 2], count=1).vectors.tolist() == [[1, 2]]
    with pytest.raises(UpstreamProtocolError) as refused:
        read([1, 2, 3], count=1)
    assert "3 numbers where 2" in refused.value.message and refused.value.route_fault


@pytest.mark.parametrize("document", [[1, 2], [1, 2, 3, 4]])
def test_a_flat_vector_for_several_inputs(document: object) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(document, count=2)
    assert "numbers where 2 vectors belong" in refused.value.message


@pytest.mark.parametrize(
    "document",
    [
        [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
        b"[[[1,NaN],[3,4]],[[5,6],[7,8]]]",
        [[[1, 2]], [[3, 4]]],
        [[[[1, 2]]], [[[3, 4]]]],
    ],
)
def test_vectors_of_tokens_are_refused_with_advice(document: object) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(document)
    assert "a vector for each token" in refused.value.message
    assert refused.value.route_fault and "with pooling" in refused.value.advice


@pytest.mark.parametrize(
    "document",
    [
        [],
        [[1, 2]],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2], [3, 4, 5]],
        [[1, 2], 3],
        [[1, 2], None],
        [[1, 2], [3, None]],
        [None, None],
        b"[[1,2],[3,NaN]]",
        [[], []],
        [[[]], [[]]],
        [[["a"]]],
        ["a", "b"],
        {"embeddings": [[1, 2], [3, 4]]},
    ],
)
def test_anything_but_one_good_vector_an_input(document: object) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(document)


def test_a_null_for_one_input() -> None:
    for document in ([None], [None, None], [1, None], b"[1,NaN]"):
        with pytest.raises(UpstreamProtocolError):
            read(document, count=1)


def test_a_200_with_an_error_in_it() -> None:
    with pytest.raises(UpstreamError) as raised:
        read({"error": "Model m is currently loading", "estimated_time": 20.0})
    assert not isinstance(raised.value, UpstreamProtocolError) and raised.value.retryable


@pytest.mark.parametrize(
    ("document", "wait_s"),
    [
        ({"error": "Model m is currently loading", "estimated_time": 20.5}, 20.5),
        ({"error": "Model m is currently loading", "estimated_time": 7}, 7.0),
        ({"error": "Model m is currently loading", "estimated_time": 4000}, 120.0),
        ({"error": "Model m is currently loading"}, None),
        ({"error": "x", "estimated_time": "soon"}, None),
        ({"error": "x", "estimated_time": -1}, None),
        ({"error": "x", "estimated_time": 0}, None),
        ({"error": "x", "estimated_time": 1e300}, 120.0),
        (b'{"error":"x","estimated_time":NaN}', None),
        (b"Service Unavailable", None),
        ([20.5], None),
    ],
)
def test_the_time_until_a_model_is_loaded(document: object, wait_s: float | None) -> None:
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    error = PROVIDER.error_from(UpstreamReply(503, {}, raw))
    assert isinstance(error, UpstreamOverloaded) and error.retry_after_s == wait_s


def test_no_credit_left() -> None:
    reply = UpstreamReply(402, {}, b'{"error":"You have exceeded your monthly included credits"}')
    assert PROVIDER.error_from(reply).code == "upstream_quota"
