"""The gateway client of Vercel's AI SDK, as @ai-sdk/gateway 3.0.232 and 4.0.146 send their calls and read replies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from models.key import Scope
from tests.gateway import Gateway

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
VERSIONS = ["3", "4"]


async def post(gateway: Gateway, version: str, body: Any, *, model: str = "tiny", **headers: str) -> httpx.Response:
    sent = {
        "content-type": "application/json",
        "ai-gateway-protocol-version": "0.0.1",
        "ai-gateway-auth-method": "api-key",
        "ai-embedding-model-specification-version": version,
        "ai-model-id": model,
        "user-agent": f"ai-sdk/gateway/{version}.0.0 runtime/node.js/v20.20.2",
    }
    return await gateway.client.post(f"/v{version}/ai/embedding-model", json=body, headers=sent | headers)


@leaving_nothing
@pytest.mark.parametrize("version", VERSIONS)
async def test_vectors_are_those_of_the_sync_call(shared_gateway: Gateway, version: str) -> None:
    reply = await post(shared_gateway, version, {"values": ["a", "b"]})
    expected = (await shared_gateway.embed(["a", "b"])).json()
    body = reply.json()
    assert reply.status_code == 200 and reply.headers["content-type"] == "application/json"
    assert body["embeddings"] == [each["embedding"] for each in expected["data"]]
    assert body["usage"] == {"tokens": expected["usage"]["total_tokens"]} and body["warnings"] == []
    gateway = body["providerMetadata"]["gateway"]
    assert gateway["routing"]["finalProvider"] == "fake" and gateway["cost"] and gateway["generationId"][:4] == "gen_"
    assert reply.headers["x-embedmill-space"] == "fake/tiny" and int(reply.headers["x-ratelimit-limit-requests"]) > 0


@leaving_nothing
async def test_2048_values_keep_their_order(shared_gateway: Gateway) -> None:
    texts = [f"text {index} {'x' * 40}" for index in range(2048)]
    reply = await post(shared_gateway, "3", {"values": texts}, model="short")
    last = await post(shared_gateway, "3", {"values": texts[2040:]}, model="short")
    assert len(reply.json()["embeddings"]) == 2048
    assert reply.json()["embeddings"][2040:] == last.json()["embeddings"]
    over = await post(shared_gateway, "3", {"values": [*texts, "one more"]})
    assert over.status_code == 400 and "2048" in over.json()["error"]["message"]


@leaving_nothing
@pytest.mark.parametrize(
    "body",
    [
        {"values": ["a"], "dimensions": 4},
        {"values": ["a"], "providerOptions": {"fake": {"dimensions": 4}}},
        {"values": ["a"], "dimensions": 4, "providerOptions": {"fake": {"outputDimensionality": 4}}},
    ],
)
async def test_dimensions_as_version_4_and_its_users_send_them(shared_gateway: Gateway, body: Any) -> None:
    assert [len(row) for row in (await post(shared_gateway, "4", body)).json()["embeddings"]] == [4]


@leaving_nothing
async def test_widths_that_contradict_each_other(shared_gateway: Gateway) -> None:
    body = {"values": ["a"], "dimensions": 4, "providerOptions": {"fake": {"dimensions": 8}}}
    assert (await post(shared_gateway, "4", body)).status_code == 400


@leaving_nothing
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("body", "model", "status", "kind", "param"),
    [
        ({"values": ["a"]}, "nix", 404, "model_not_found", "model"),
        ({"values": ["a"]}, "", 400, "invalid_request_error", "ai-model-id"),
        ({"values": ["a", ""]}, "tiny", 400, "invalid_request_error", "values[1]"),
        ({"values": []}, "tiny", 400, "invalid_request_error", "values"),
        ({"values": ["a", 5]}, "tiny", 400, "invalid_request_error", "values[1]"),
        ({"values": {"a": 1}}, "tiny", 400, "invalid_request_error", "values"),
        ({}, "tiny", 400, "invalid_request_error", "values"),
        ({"values": ["a"], "dimensions": 99}, "tiny", 400, "invalid_request_error", "dimensions"),
        ({"values": ["a"], "valves": 1}, "tiny", 400, "invalid_request_error", "valves"),
        ({"values": ["a", "poison"]}, "tiny", 400, "invalid_request_error", "values[1]"),
        ({"values": ["broken"]}, "tiny", 502, "internal_server_error", None),
    ],
)
async def test_errors_have_the_types_that_the_client_knows(
    shared_gateway: Gateway, version: str, body: Any, model: str, status: int, kind: str, param: str | None
) -> None:
    reply = await post(shared_gateway, version, body, model=model)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (status, kind, param), reply.text
    assert set(error) == {"message", "type", "param", "code"} and error["message"]


@leaving_nothing
async def test_a_wrong_key_and_a_wrong_body(shared_gateway: Gateway) -> None:
    wrong = await post(shared_gateway, "3", {"values": ["a"]}, authorization="Bearer em_wrong")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
    assert int(wrong.headers["x-ratelimit-limit-requests"]) > 0
    for content in (b"{", b"", b"[]", b'{"values":["a"],"values":["b"]}', b'{"values":["a",]}', b"\xff"):
        headers = {"ai-model-id": "tiny", "content-type": "application/json"}
        reply = await shared_gateway.client.post("/v3/ai/embedding-model", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error"), content


@leaving_nothing
@pytest.mark.parametrize("large", [False, True])
async def test_large_bodies_are_read_as_small_ones_are(shared_gateway: Gateway, large: bool) -> None:
    filler = [f"{index} {'y ' * 500}" for index in range(100)] if large else []
    texts = ["a", *filler]
    good = await post(shared_gateway, "3", {"values": texts})
    assert good.status_code == 200 and len(good.json()["embeddings"]) == len(texts)
    bad = await post(shared_gateway, "3", {"values": [*texts, 7]})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, f"values[{len(texts)}]")
    single = await post(shared_gateway, "3", {"values": "\\" * 40_000 if large else "z"})
    if large:  # it is read, and has more tokens than the model takes
        assert (single.status_code, single.json()["error"]["param"]) == (400, "values")
    else:
        assert single.status_code == 200 and len(single.json()["embeddings"]) == 1


@leaving_nothing
@pytest.mark.parametrize("version", VERSIONS)
async def test_the_models(shared_gateway: Gateway, version: str) -> None:
    reply = await shared_gateway.client.get(f"/v{version}/ai/config")
    models = {each["id"]: each for each in reply.json()["models"]}
    assert models["tiny"]["specification"] == {
        "specificationVersion": f"v{version}",
        "provider": "fake",
        "modelId": "tiny",
    }
    assert models["tiny"]["modelType"] == "embedding"
    assert models["tiny"]["pricing"] == {"input": "0.00000002", "output": "0"}


async def test_credits_are_what_the_project_has_spent(gateway: Gateway) -> None:
    assert (await gateway.client.get("/v1/credits")).json() == {"balance": "Infinity", "total_used": "0"}
    cost = (await post(gateway, "3", {"values": ["a", "b"]})).json()["providerMetadata"]["gateway"]["cost"]
    await gateway.runtime.usage.flush()
    assert (await gateway.client.get("/v1/credits?teamId=team_1")).json()["total_used"] == cost != "0"
    stranger = await gateway.another_key(project="stranger")
    assert (await gateway.client.get("/v1/credits", headers=stranger)).json()["total_used"] == "0"


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v3/ai/embedding-model"])
async def test_the_record_of_a_call(gateway: Gateway, path: str) -> None:
    body = {"values": ["a", "b"]} if "ai" in path else {"model": "tiny", "input": ["a", "b"]}
    reply = await gateway.client.post(path, json=body, headers={"ai-model-id": "tiny"})
    metadata = reply.json()["providerMetadata"]["gateway"]
    found = await gateway.client.get("/v1/generation", params={"id": metadata["generationId"]})
    record = found.json()["data"]
    assert found.status_code == 200 and record["id"] == metadata["generationId"]
    assert record["total_cost"] == record["usage"] == float(metadata["cost"]) > 0
    assert (record["model"], record["provider_name"], record["native_tokens_prompt"]) == ("tiny", "fake", 2)
    assert record["created_at"].endswith("Z") and record["finish_reason"] == "stop"
    stranger = await gateway.another_key(project="stranger")
    answers = [
        await gateway.client.get("/v1/generation", params={"id": metadata["generationId"]}, headers=stranger),
        await gateway.client.get("/v1/generation", params={"id": "gen_" + "0" * 32}),
        await gateway.client.get("/v1/generation", params={"id": "nix"}),
        await gateway.client.get("/v1/generation", params={"id": metadata["generationId"] + "0"}),
    ]
    assert {(each.status_code, each.text) for each in answers} == {(404, answers[0].text)}
    assert (await gateway.client.get("/v1/generation")).status_code == 400


async def test_the_account_needs_the_scope_of_usage(gateway: Gateway) -> None:
    key = await gateway.another_key(scopes=[Scope.EMBEDDINGS, Scope.JOBS])
    for path in ("/v1/credits", "/v1/generation?id=x"):
        refused = await gateway.client.get(path, headers=key)
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "forbidden")


async def test_the_report(gateway: Gateway) -> None:
    for texts, user in ((["a"], "ann"), (["a", "b"], "ann"), (["c"], "bob")):
        assert (await gateway.embed(texts, user=user)).status_code == 200
    await gateway.runtime.usage.flush()
    today = datetime.now(UTC)
    dates = {
        "start_date": (today - timedelta(days=1)).strftime("%Y-%m-%d"),
        "end_date": (today + timedelta(days=1)).strftime("%Y-%m-%d"),
    }

    async def results(**query: str) -> list[dict[str, Any]]:
        reply = await gateway.client.get("/v1/report", params=dates | query)
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()["results"]
        return found

    assert [(each["user"], each["input_tokens"], each["request_count"]) for each in await results(group_by="user")] == [
        ("ann", 3, 2),
        ("bob", 1, 1),
    ]
    assert sum(each["input_tokens"] for each in await results()) == 4
    assert all(datetime.fromisoformat(each["day"]) for each in await results(group_by="day", date_part="day"))
    [by_model] = await results(group_by="model", user_id="bob")
    assert (by_model["model"], by_model["input_tokens"]) == ("tiny", 1) and by_model["total_cost"] > 0
    assert await results(group_by="provider", model="nix") == []
    stranger = await gateway.another_key(project="stranger")
    assert (await gateway.client.get("/v1/report", params=dates, headers=stranger)).json() == {"results": []}
    before = {"start_date": "2001-01-01", "end_date": "2001-01-02"}
    assert (await gateway.client.get("/v1/report", params=before)).json() == {"results": []}
    for wrong in (
        {"start_date": "x"},
        {"end_date": ""},
        {"group_by": "tag"},
        {"date_part": "hour"},
        {"tags": "a"},
        {"credential_type": "byok"},
    ):
        assert (await gateway.client.get("/v1/report", params=dates | wrong)).status_code == 400, wrong
