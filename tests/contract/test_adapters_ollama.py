"""Ollama's native API by golden pairs: what is sent byte for byte, and what replies and errors say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import orjson
import pytest

from models.embedding import Account, Batch, Limits, Options, Route
from models.errors import UpstreamError, UpstreamMisconfigured, UpstreamOverloaded, UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, check_embedded
from providers.ollama import OllamaProvider

PROVIDER = OllamaProvider()
ACCOUNT = Account("box", "ollama", "http://127.0.0.1:11434")
ROUTE = Route(ACCOUNT, "nomic-embed-text:v1.5", 768, PROVIDER.traits.limits, Decimal(0))


def batch(texts: Sequence[str] = ("hello",), width: int = 768, *, bare: bool = False, **options: Any) -> Batch:
    return Batch(list(texts), range(len(texts)), 1, width, Options(**options), is_bare_string=bare)


def body(asked: Batch) -> dict[str, Any]:
    sent: dict[str, Any] = orjson.loads(PROVIDER.request(asked, ROUTE).body)
    return sent


def test_the_whole_request() -> None:
    request = PROVIDER.request(batch(["Zürich", "b"]), ROUTE)
    assert (request.method, request.url) == ("POST", "http://127.0.0.1:11434/api/embed")
    assert dict(request.headers) == {
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
    }
    assert request.body == '{"model":"nomic-embed-text:v1.5","input":["Zürich","b"],"truncate":false}'.encode()


def test_the_key_of_the_cloud() -> None:
    cloud = dataclasses.replace(ROUTE, account=Account("cloud", "ollama", "https://ollama.com", "k"))
    request = PROVIDER.request(batch(), cloud)
    assert request.url == "https://ollama.com/api/embed" and request.headers["authorization"] == "Bearer k"


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (batch(["a"], bare=True), {"input": ["a"], "truncate": False}),
        (batch(width=256), {"input": ["hello"], "truncate": False, "dimensions": 256}),
        (batch(truncate="end"), {"input": ["hello"], "truncate": True}),
        (batch(truncate="mean"), {"input": ["hello"], "truncate": False}),
        (batch(input_type="query"), {"input": ["hello"], "truncate": False}),
        (batch(user="u-7"), {"input": ["hello"], "truncate": False}),
        (
            batch(provider_options={"ollama": {"keep_alive": "5m", "options": {"num_ctx": 8192}, "truncate": True}}),
            {"input": ["hello"], "truncate": False, "keep_alive": "5m", "options": {"num_ctx": 8192}},
        ),
        (batch(provider_options={"box": {"model": "other", "input": "x"}}), {"input": ["hello"], "truncate": False}),
    ],
)
def test_bodies(asked: Batch, sent: dict[str, Any]) -> None:
    assert body(asked) == {"model": "nomic-embed-text:v1.5", **sent}


def test_small_calls() -> None:
    assert PROVIDER.traits.limits == Limits(64, 8192, 65_536, 8 * 1024 * 1024)
    assert PROVIDER.traits.input_type is None and not PROVIDER.traits.accepts_tokens


def read(document: object, count: int = 2) -> EmbeddingReply:
    asked = batch(["a text of many words"] * count, width=2)
    by = dataclasses.replace(ROUTE, width=2)
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    embedded = PROVIDER.parse_reply(UpstreamReply(200, {}, raw), asked, by)
    check_embedded(embedded, embedded.vectors, asked, by)
    return embedded


@pytest.mark.parametrize(
    ("fields", "tokens", "is_doubted"),
    [
        ({"model": "m", "total_duration": 1, "load_duration": 1, "prompt_eval_count": 12}, 12, False),
        ({}, None, False),
        ({"prompt_eval_count": None}, None, False),
        ({"prompt_eval_count": 0}, None, False),
        ({"prompt_eval_count": "12"}, None, True),
        ({"prompt_eval_count": -1}, None, True),
        ({"prompt_eval_count": 99999}, None, True),
    ],
)
def test_a_reply_and_its_tokens(fields: dict[str, object], tokens: int | None, is_doubted: bool) -> None:
    embedded = read({"embeddings": [[1, 2], [3, 4]], **fields})
    assert embedded.vectors.tolist() == [[1, 2], [3, 4]] and embedded.upstream_model is None
    assert embedded.tokens == tokens and (embedded.tokens_doubt is not None) == is_doubted


def test_an_empty_text_gives_an_empty_list() -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read({"model": "m", "embeddings": []}, count=1)
    assert refused.value.message == "the reply holds 0 vectors for 1 inputs"


def test_a_width_that_was_ignored_is_found() -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read({"embeddings": [[1, 2, 3], [4, 5, 6]]})
    assert refused.value.route_fault and "dimensions = 3" in refused.value.advice


@pytest.mark.parametrize(
    "document",
    [
        {"embeddings": [[1, 2]]},
        {"embeddings": [[1, 2], None]},
        {"embeddings": [[1, 2], [3, None]]},
        b'{"embeddings":[[1,2],[3,NaN]]}',
        {"embeddings": [1, 2]},
        {"embeddings": [[[1, 2]], [[3, 4]]]},
        {"embedding": [1, 2]},  # of the older /api/embeddings
        {"embeddings": None},
        [[1, 2], [3, 4]],
    ],
)
def test_anything_but_one_good_vector_an_input(document: object) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(document)


def test_a_200_with_an_error_in_it() -> None:
    with pytest.raises(UpstreamError) as raised:
        read({"error": "failed to encode response: json: unsupported value: NaN"})
    assert not isinstance(raised.value, UpstreamProtocolError) and raised.value.retryable


def test_errors() -> None:
    def error(status: int, message: str) -> UpstreamError:
        return PROVIDER.error_from(UpstreamReply(status, {}, orjson.dumps({"error": message})))

    assert error(400, "the input length exceeds the context length").code == "input_too_long"
    too_long = "input exceeds maximum context length and cannot be truncated further"
    assert error(400, too_long).code == "input_too_long"
    assert isinstance(error(404, 'model "m" not found, try pulling it first'), UpstreamMisconfigured)
    busy = "server busy, please try again.  maximum pending requests exceeded"
    assert isinstance(error(503, busy), UpstreamOverloaded)
