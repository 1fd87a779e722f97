"""What a caller hears of a provider's faults and of options that may not be set: the status, the field, few calls."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from providers.fake import FakeScript, fake_vectors
from tests.gateway import WIDTH, Gateway, close_gateway, error_of, open_gateway

CONFIG = """
[providers.main]
kind = "fake"
script = [
    { when.contains = "chat model", do = { status = 400, body.error = "this model does not support embeddings" } },
    { when.contains = "bad key", do = { status = 400, body = [{ error.message = "API key not valid. Please …" }] } },
    { when.contains = "not narrowed", do = { status = 400, body.error.param = "dimensions" } },
    { when = { contains = "odd usage" }, do = { usage = { prompt_tokens = false, total_tokens = "six" } } },
    { when = { contains = "huge usage" }, do = { usage = { prompt_tokens = 1000000000000000 } } },
    { when = { contains = "no base64", encoding_format = "base64" }, do = { status = 422, body = "unknown variant" } },
    { when = { contains = "packed" }, do = { gzip = true } },
    { when = { contains = "much later" }, do = { status = 429, retry_after = 3600 } },
    { when = { contains = "own limit" }, do = { status = 429, retry_after = 30 } },
    { when = { contains = "names no time" }, do = { status = 429, message = "https://up.test/v1 sk-secret" } },
]

[models."acme/tiny"]
dimensions = 16
allowed_dimensions = "4..16"
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "main", model = "up" }]
"""
TINY = "acme/tiny"


@pytest.fixture
async def faulty(migrated: Path, tmp_path: Path) -> AsyncIterator[Gateway]:
    shutil.copyfile(migrated, tmp_path / "embedmill.db")
    gateway = await open_gateway(tmp_path, config=CONFIG)
    yield gateway
    await close_gateway(gateway)


async def rows_of(gateway: Gateway, given: list[str], **fields: Any) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    reply = await gateway.embed(given, model=TINY, **fields)
    assert reply.status_code == 200, reply.text
    document = reply.json()
    return np.array([item["embedding"] for item in document["data"]], dtype=np.float32), document


async def test_a_model_that_cannot_embed_is_501_each_time(faulty: Gateway) -> None:
    for _ in range(2):
        reply = await faulty.embed(["chat model"] * 40, model=TINY)
        assert (reply.status_code, error_of(reply)["code"]) == (501, "not_implemented")


async def test_a_width_that_the_provider_does_not_have_is_no_reason_to_leave_the_route_out(faulty: Gateway) -> None:
    """The caller of the native width is another tenant."""
    reply = await faulty.embed(["not narrowed"], model=TINY, dimensions=8)
    assert reply.status_code == 502, reply.text
    others = await faulty.another_key()
    served = await faulty.client.post("/v1/embeddings", json={"model": TINY, "input": "a"}, headers=others)
    assert served.status_code == 200, served.text


async def test_a_provider_that_wants_to_be_asked_much_later_is_a_429_at_once(faulty: Gateway) -> None:
    """One whose text draws it waits alone."""
    for _ in range(2):
        began = time.monotonic()
        reply = await faulty.embed(["much later"], model=TINY)
        assert time.monotonic() - began < 2.0
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "60")
        assert "rate limit" in error_of(reply)["message"]
        assert (await faulty.embed(["another text"], model=TINY)).status_code == 200


async def test_a_text_that_alone_draws_a_401_brings_about_no_outage(faulty: Gateway) -> None:
    """The route's own control call passes, so the credential is good, whatever the status says."""
    reply = await faulty.embed(["bad key"] * 40, model=TINY)
    assert reply.status_code == 400
    assert (await faulty.embed(["a"], model=TINY)).status_code == 200


async def test_a_bad_key_is_not_the_callers_fault(faulty: Gateway) -> None:
    """It refuses a call with a text of ours too."""
    for upstream in faulty.runtime.upstream._in_process._fakes.values():
        upstream.script = FakeScript.parse(
            [{"do": {"status": 400, "body": [{"error": {"message": "API key not valid. Please …"}}]}}]
        )
    reply = await faulty.embed(["a"] * 40, model=TINY)
    assert reply.status_code == 502 and error_of(reply)["param"] is None
    message = error_of(reply)["message"]
    assert "Provider account" in message and "providers test" in message


@pytest.mark.parametrize("text", ["odd usage", "huge usage"])
async def test_vectors_beside_odd_usage_are_served(faulty: Gateway, text: str) -> None:
    rows, document = await rows_of(faulty, [text, "b"])
    assert rows.tobytes() == fake_vectors([text, "b"], WIDTH, "up").tobytes()
    metadata = document["providerMetadata"]["gateway"]
    assert metadata["usageEstimated"] is True and len(metadata["routing"]["attempts"]) == 1
    assert 0 < document["usage"]["prompt_tokens"] < 20 and float(metadata["cost"]) < 1e-6


async def test_a_compressed_reply_and_one_without_base64_are_served(faulty: Gateway) -> None:
    for text in ("no base64", "packed", "no base64 again"):
        rows, _ = await rows_of(faulty, [text])
        assert rows.tobytes() == fake_vectors([text], WIDTH, "up").tobytes()


@pytest.mark.parametrize("provider", ["main", "fake", "acme"])
@pytest.mark.parametrize("name", ["dimensions", "outputDimensionality", "outputDimension", "output_dimension"])
async def test_a_width_under_a_provider_is_the_width(faulty: Gateway, provider: str, name: str) -> None:
    rows, _ = await rows_of(faulty, ["a"], providerOptions={provider: {name: 8}})
    assert rows.tobytes() == fake_vectors(["a"], 8, "up").tobytes()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"dimensions": 4, "providerOptions": {"main": {"dimensions": 8}}}, "providerOptions.main.dimensions"),
        ({"providerOptions": {"fake": {"outputDimension": 3}}}, "providerOptions.fake.outputDimension"),
        ({"providerOptions": {"main": {"api_base": "http://x"}}}, "providerOptions.main.api_base"),
        ({"providerOptions": {"other": {"a": {"extraHeaders": {}}}}}, "providerOptions.other.a.extraHeaders"),
        ({"providerOptions": {"gateway": {"models": [TINY] * 1_000}}}, "providerOptions.gateway.models"),
    ],
)
async def test_what_may_not_be_set_is_named_before_any_call(
    faulty: Gateway, fields: dict[str, Any], param: str
) -> None:
    reply = await faulty.embed(["a"], model=TINY, **fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    job = await faulty.client.post("/v1/embeddings/jobs", json={"model": TINY, "input": ["a"], **fields})
    assert job.status_code == 400 and param.startswith(error_of(job)["param"])  # a job's options have a size, too


async def test_a_job_takes_its_width_from_a_providers_options(faulty: Gateway) -> None:
    job = await faulty.submit(["a", "b"], model=TINY, providerOptions={"main": {"dimensions": 8}})
    assert job["dimensions"] == 8
    job = await faulty.run(job["id"])
    assert job["status"] == "completed"
    lines = (await faulty.results(job["id"])).text.splitlines()
    assert len(lines) == 2 and lines[0].count(",") >= 8
