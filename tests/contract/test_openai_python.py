"""The official OpenAI package for Python against a running server: what its users do, and what they see go wrong."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from models.embedding import Input, Matrix
from providers.fake import fake_vectors
from tests.contract.conftest import Server
from tests.gateway import WIDTH

LOCAL = "local/wordllama-256"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0, timeout=30.0) as client:
        yield client


def rows(reply: Any) -> Matrix:
    assert [item.index for item in reply.data] == list(range(len(reply.data)))
    return np.array([item.embedding for item in reply.data], dtype=np.float32)


def right(inputs: list[Input], width: int = WIDTH) -> bytes:
    return fake_vectors(inputs, width, "up").tobytes()


def test_as_everyone_calls_it(client: OpenAI) -> None:
    reply = client.embeddings.create(model="tiny", input="hello")  # base64 on the wire, floats in the hand
    assert rows(reply).tobytes() == right(["hello"])
    assert (reply.object, reply.model) == ("list", "tiny")
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (2, 2)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_lists_in_both_encodings(client: OpenAI, count: int) -> None:
    texts = [f"text {i}" for i in range(count)]
    for model in ("tiny", "short"):
        default = client.embeddings.create(model=model, input=texts)
        explicit = client.embeddings.create(model=model, input=texts, encoding_format="float")
        assert rows(default).tobytes() == rows(explicit).tobytes() == right([*texts])


def test_explicit_base64_is_handed_over_as_it_is(client: OpenAI) -> None:
    reply = client.embeddings.create(model="tiny", input=["a", "b"], encoding_format="base64")
    packed: Any = [item.embedding for item in reply.data]
    assert b"".join(base64.b64decode(each) for each in packed) == right(["a", "b"])


@pytest.mark.parametrize("model", ["tiny", "cut"])
def test_dimensions(client: OpenAI, model: str) -> None:
    reply = client.embeddings.create(model=model, input=["a", "b"], dimensions=4)
    assert rows(reply) == pytest.approx(fake_vectors(["a", "b"], 4, "up"), abs=1e-6)


def test_token_arrays(client: OpenAI) -> None:
    one = client.embeddings.create(model="tiny", input=[1, 2, 3])
    many = client.embeddings.create(model="tiny", input=[[1, 2, 3], [4]])
    assert rows(one).tobytes() == right([[1, 2, 3]]) and rows(many).tobytes() == right([[1, 2, 3], [4]])


def test_our_own_fields_go_through_extra_body(client: OpenAI) -> None:
    reply = client.embeddings.create(
        model="fixed", input="word " * 40, user="u", extra_body={"truncate": "end", "input_type": "query"}
    )
    assert rows(reply).shape == (1, WIDTH)
    metadata: Any = (reply.model_extra or {})["providerMetadata"]["gateway"]
    assert metadata["routing"]["finalProvider"] == "fake" and metadata["cost"]


def test_real_vectors_of_the_local_model(client: OpenAI) -> None:
    reply = client.embeddings.create(model=LOCAL, input=["a dog barks", "a puppy yelps", "tax law of 1954"])
    dog, puppy, law = rows(reply)
    assert dog @ puppy > dog @ law


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code"),
    [
        ({"input": ""}, openai.BadRequestError, "input", "empty_input"),
        ({"input": ["a", ""]}, openai.BadRequestError, "input[1]", "empty_input"),
        ({"dimensions": 99}, openai.BadRequestError, "dimensions", "invalid_value"),
        ({"input": ["a"] * 2049}, openai.BadRequestError, "input", "array_above_max_length"),
        ({"input": ["a", "poison"]}, openai.BadRequestError, "input[1]", "upstream_rejected"),
        ({"extra_body": {"unheard_of": 1}}, openai.BadRequestError, "unheard_of", "unknown_parameter"),
        ({"model": "nope"}, openai.NotFoundError, "model", "model_not_found"),
        ({"input": "broken"}, openai.InternalServerError, None, "upstream_error"),
    ],
)
def test_errors_are_the_packages_own(
    client: OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str | None, code: str
) -> None:
    with pytest.raises(kind) as raised:
        client.embeddings.create(**{"model": "tiny", "input": "a", **fields})
    error = raised.value
    assert (error.param, error.code) == (param, code) and error.message
    assert error.type == ("server_error" if error.status_code >= 500 else "invalid_request_error")
    assert re.fullmatch("req_[0-9a-f]{32}", error.request_id or "")


def test_keys(client: OpenAI, server: Server) -> None:
    for wrong in ("em_wrong", "sk-someone-elses"):
        with pytest.raises(openai.AuthenticationError) as refused:
            client.with_options(api_key=wrong).embeddings.create(model="tiny", input="a")
        assert refused.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        client.with_options(api_key=server.jobs_only_key).embeddings.create(model="tiny", input="a")
    assert forbidden.value.code == "missing_scope"


def test_request_ids_are_the_headers(client: OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="tiny", input="a")
    assert raw.headers["x-request-id"] == raw.request_id and raw.headers["x-embedmill-provider"] == "fake"
    assert re.fullmatch("req_[0-9a-f]{32}", raw.request_id or "")


def test_listing_models_ends(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]  # iterates over pages until there are no more
    assert len(set(names)) == len(names) and {"tiny", LOCAL} <= set(names)
    assert client.models.retrieve(LOCAL).id == LOCAL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


async def test_the_async_client(server: Server) -> None:
    async with AsyncOpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        reply = await client.embeddings.create(model="tiny", input=["a", "b"])
        assert rows(reply).tobytes() == right(["a", "b"])
        assert [model.id async for model in client.models.list()]
