"""Keys in the headers of several clients: one good key is enough, two different good ones are a mistake."""

from __future__ import annotations

import httpx
import pytest

from tests.gateway import Gateway, error_of

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
FORMS = [
    ("authorization", "Bearer {}"), ("authorization", "bearer  {} "), ("x-api-key", "{}"), ("api-key", "{}"),
    ("otari-key", "{}"), ("otari-key", "Bearer {}"), ("X-Openai-Api-Key", "{}"),
]  # fmt: skip


async def ask(gateway: Gateway, headers: list[tuple[str, str]]) -> httpx.Response:
    async with httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway") as stranger:
        return await stranger.get("/v1/models", headers=headers)


@leaving_nothing
@pytest.mark.parametrize(("name", "form"), FORMS)
async def test_a_key_in_each_header(shared_gateway: Gateway, name: str, form: str) -> None:
    assert (await ask(shared_gateway, [(name, form.format(shared_gateway.key))])).status_code == 200
    wrong = await ask(shared_gateway, [(name, form.format("em_wrong"))])
    assert wrong.status_code == 401 and name.lower() in error_of(wrong)["message"].lower()


@leaving_nothing
@pytest.mark.parametrize(("name", "form"), FORMS)
async def test_an_empty_one_beside_a_good_one_does_not_count(shared_gateway: Gateway, name: str, form: str) -> None:
    for empty, value in (("authorization", "Bearer "), ("api-key", ""), ("otari-key", "Bearer"), ("x-api-key", " ")):
        if empty != name:
            headers = [(empty, value), (name, form.format(shared_gateway.key))]
            assert (await ask(shared_gateway, headers)).status_code == 200
            assert (await ask(shared_gateway, headers[::-1])).status_code == 200


@leaving_nothing
@pytest.mark.parametrize(("name", "form"), FORMS[2:])
async def test_two_different_good_keys_are_a_400(shared_gateway: Gateway, name: str, form: str) -> None:
    other = (await shared_gateway.another_key())["authorization"].removeprefix("Bearer ")
    bearer = ("authorization", f"Bearer {shared_gateway.key}")
    for headers in ([bearer, (name, form.format(other))], [(name, form.format(other)), bearer]):
        reply = await ask(shared_gateway, headers)
        assert (reply.status_code, error_of(reply)["code"]) == (400, "several_api_keys")
        assert "Authorization" in error_of(reply)["message"] and name.lower() in error_of(reply)["message"].lower()
        assert other not in reply.text and shared_gateway.key not in reply.text
    same = await ask(shared_gateway, [bearer, (name, form.format(shared_gateway.key))])
    assert same.status_code == 200
    beside_a_wrong_one = await ask(shared_gateway, [bearer, (name, form.format("sk-of-another-service"))])
    assert beside_a_wrong_one.status_code == 200


@leaving_nothing
async def test_one_header_twice(shared_gateway: Gateway) -> None:
    other = (await shared_gateway.another_key())["authorization"]
    twice = [("authorization", other), ("authorization", f"Bearer {shared_gateway.key}")]
    assert error_of(await ask(shared_gateway, twice))["code"] == "several_api_keys"


@leaving_nothing
@pytest.mark.parametrize("header", ["x-goog-api-key", "cookie", "proxy-authorization", "x-forwarded-authorization"])
async def test_other_headers_are_no_keys(shared_gateway: Gateway, header: str) -> None:
    for value in (shared_gateway.key, f"Bearer {shared_gateway.key}"):
        assert (await ask(shared_gateway, [(header, value)])).status_code == 401
    async with httpx.AsyncClient(transport=shared_gateway.transport(), base_url="http://gateway") as stranger:
        assert (await stranger.get("/v1/models", params={"key": shared_gateway.key})).status_code == 401
