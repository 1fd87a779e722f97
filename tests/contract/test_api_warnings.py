"""`warnings`: what of a request was not honoured, and which figures are not the provider's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, error_of, open_gateway

leaving_nothing = pytest.mark.asyncio(loop_scope="session")


def warnings(reply: Any) -> list[dict[str, str]]:
    assert reply.status_code == 200, reply.text
    found: list[dict[str, str]] = reply.json()["providerMetadata"]["gateway"]["warnings"]
    assert all(set(each) == {"type", "feature", "details"} and each["details"] for each in found)
    return found


@leaving_nothing
@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, []),
        ({"user": "u", "dimensions": 4, "truncate": "end", "encoding_format": "base64"}, []),
        ({"providerOptions": {}}, []),
        ({"providerOptions": {"fake": {"dimensions": 4}}}, []),
        ({"providerOptions": {"gateway": {"order": ["fake"], "tags": ["t"], "cache": False}}}, []),
        ({"input_type": "query"}, ["input_type"]),
        ({"providerOptions": {"cohere": {"seed": 1}}}, ["providerOptions.cohere"]),
        ({"providerOptions": {"gateway": {"sort": "cost", "strict": True}}}, []),
        ({"providerOptions": {"gateway": {"cacheControl": "x", "num_retries": 2}}},
         ["providerOptions.gateway.cacheControl", "providerOptions.gateway.num_retries"]),
        ({"providerOptions": {"gateway": {"cache": True}}}, ["providerOptions.gateway.cache"]),
        ({"providerOptions": {"gateway": {"zeroDataRetention": False}}}, ["providerOptions.gateway.zeroDataRetention"]),
        ({"input_type": "query", "providerOptions": {"voyage": {"a": 1}}}, ["input_type", "providerOptions.voyage"]),
    ],
)  # fmt: skip
async def test_what_was_not_honoured(shared_gateway: Gateway, fields: dict[str, Any], features: list[str]) -> None:
    """It was [] whatever was left out; a harmless hint of another gateway was a 400."""
    found = warnings(await shared_gateway.embed("a", **fields))
    assert [each["feature"] for each in found] == features
    assert {each["type"] for each in found} <= {"unsupported"}


@leaving_nothing
@pytest.mark.parametrize("name", ["zeroDataRetention", "disallowPromptTraining", "region", "dataCollection"])
async def test_what_promises_something_is_refused(shared_gateway: Gateway, name: str) -> None:
    reply = await shared_gateway.embed("a", providerOptions={"gateway": {name: True}})
    assert (reply.status_code, error_of(reply)["param"]) == (400, f"providerOptions.gateway.{name}")
    assert "Leave it out" in error_of(reply)["message"]


@leaving_nothing
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_type": "query"}, "input_type"),
        ({"providerOptions": {"gateway": {"strict": True}, "cohere": {"a": 1}}}, "providerOptions.cohere"),
        ({"providerOptions": {"gateway": {"strict": True, "retries": 1}}}, "providerOptions.gateway.retries"),
    ],
)
async def test_strict_makes_an_error_of_what_is_not_honoured(
    shared_gateway: Gateway, fields: dict[str, Any], param: str
) -> None:
    body = {"providerOptions": {"gateway": {"strict": True}}} | fields
    error = error_of(await shared_gateway.embed("a", **body))
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    job = await shared_gateway.client.post(JOBS, json={"model": "tiny", "input": "a"} | body)
    assert (job.status_code, error_of(job)["param"]) == (400, param)


async def test_a_job_says_it_too(gateway: Gateway) -> None:
    options = {"gateway": {"retries": 3}, "cohere": {"seed": 1}}
    job = await gateway.submit(["a"], input_type="query", providerOptions=options)
    assert [each["code"] for each in job["warnings"]] == ["unsupported_parameter"] * 3
    assert "'input_type'" in job["warnings"][0]["message"]
    assert (await gateway.run(job["id"]))["warnings"] == job["warnings"]
    assert (await gateway.submit(["a"], user="u"))["warnings"] == []
    refused = await gateway.client.post(
        JOBS, json={"model": "tiny", "input": "a", "providerOptions": {"gateway": {"x": 1}}}
    )
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("figure", "is_doubtful"), [("1000000000000000", True), ("-1", True), ("1.5", True), ("'x'", True), ("3", False)]
)
async def test_a_figure_that_is_not_believed_is_told(data_dir: Path, figure: str, is_doubtful: bool) -> None:
    """The caller saw `usageEstimated` and could not know why; only the log said it."""
    rule = '{ when = { contains = "odd" }, do = { usage = { prompt_tokens = %s } } },'
    config = CONFIG.replace("script = [", "script = [" + rule % figure)
    gateway = await open_gateway(data_dir, config=config)
    try:
        reply = await gateway.embed("an odd text")
        assert [each["feature"] for each in warnings(reply)] == (["usage"] if is_doubtful else [])
        if is_doubtful:
            assert warnings(reply)[0]["type"] == "other" and "fake" in warnings(reply)[0]["details"]
            assert reply.json()["providerMetadata"]["gateway"]["usageEstimated"] is True
            assert reply.json()["usage"]["prompt_tokens"] < 100
        assert warnings(await gateway.embed("another text")) == []
    finally:
        await close_gateway(gateway)


async def test_the_meaning_of_its_inputs_is_stamped_on_a_job_and_on_its_results(gateway: Gateway) -> None:
    job = await gateway.submit(["a"], input_type="query")
    assert job["input_type"] == "query" and (await gateway.submit(["a"]))["input_type"] is None
    await gateway.run(job["id"])
    results = await gateway.client.get(f"{JOBS}/{job['id']}/results")
    assert results.headers["x-embedmill-input-type"] == "query"
