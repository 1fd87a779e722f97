"""Deny by default, as a walk over every route of the app: no route is open by accident, and none is shut by one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.dialects.dialect import DialectRoute
from api.dialects.table import TABLE
from api.http.auth import PUBLIC, PUBLIC_PATHS, REQUIRED_SCOPE, GuardedRoute
from api.http.middleware import RequestContext
from api.routes import all_routes
from models.key import Scope
from tests.gateway import Gateway, error_of

DECLARED = list(all_routes())
DIALECTS = {(entry.method, entry.path) for entry in TABLE}
IDS = {"job_id": "job_" + "0" * 32, "model": "tiny"}


def walk(gateway: Gateway) -> Iterator[tuple[Any, str, str]]:
    """Every route that the app has, whatever its kind: the route, a method, and a path that it matches."""
    assert isinstance(gateway.app, RequestContext)
    for route in gateway.app._app.routes:  # type: ignore[attr-defined]
        path = re.sub(r"\{(\w+)(:\w+)?\}", lambda named: IDS.get(named[1], "x"), route.path)
        for method in sorted(route.methods or {"GET"}):
            yield route, method, path


def is_public(route: Any) -> bool:
    return route.name in PUBLIC or route.path in PUBLIC_PATHS


async def ask(gateway: Gateway, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(transport=gateway.transport(), base_url="http://gateway", headers=headers) as client:
        return await client.request(method, path)


async def test_without_a_key_nothing_but_the_public_list_answers(gateway: Gateway) -> None:
    walked = list(walk(gateway))
    assert len(walked) >= len(DECLARED) + len(PUBLIC_PATHS)
    for route, method, path in walked:
        for headers in ({}, {"authorization": "Bearer em_wrong"}, {"x-api-key": "wrong"}):
            reply = await ask(gateway, method, path, headers)
            if is_public(route):
                assert reply.status_code in (200, 503), (method, path)  # 503: not ready, and saying so
            else:
                assert reply.status_code == 401, (method, path)
                if (method, route.path) not in DIALECTS:
                    assert error_of(reply)["code"] == "invalid_api_key"


async def test_a_key_without_the_scope_is_refused_by_name(gateway: Gateway) -> None:
    for route, method, path in walk(gateway):
        if is_public(route):
            continue
        needed = route.required_scope
        others = [scope for scope in Scope if scope not in (needed, Scope.ADMIN)]
        reply = await ask(gateway, method, path, await gateway.another_key(scopes=others))
        assert reply.status_code == 403 and f"'{needed}'" in reply.text, (method, path)
        if (method, route.path) not in DIALECTS:
            assert error_of(reply)["code"] == "missing_scope"


async def test_the_scope_and_admin_open_it(gateway: Gateway) -> None:
    for route, method, path in walk(gateway):
        if is_public(route):
            continue
        for scope in (route.required_scope, Scope.ADMIN):
            reply = await ask(gateway, method, path, await gateway.another_key(scopes=[scope]))
            assert reply.status_code not in (401, 403, 405), (method, path, scope)


async def test_every_route_of_ours_is_guarded_by_its_class(gateway: Gateway) -> None:
    for route, _, path in walk(gateway):
        assert isinstance(route, GuardedRoute) or route.path in PUBLIC_PATHS, path
    guarded = [route for route, _, _ in walk(gateway) if isinstance(route, GuardedRoute)]
    names = {route.name for route in guarded if not isinstance(route, DialectRoute)}
    assert names == set(REQUIRED_SCOPE) | PUBLIC and not set(REQUIRED_SCOPE) & PUBLIC


async def test_dialects_are_guarded_by_their_table(gateway: Gateway) -> None:
    found = {(method, route.path): route for route, method, _ in walk(gateway) if isinstance(route, DialectRoute)}
    assert set(found) == DIALECTS
    for entry in TABLE:
        route = found[entry.method, entry.path]
        assert type(route) is entry.route_class and route.name not in PUBLIC
        assert route.required_scope in set(Scope) - {Scope.ADMIN}


def test_the_public_list_is_short_and_known() -> None:
    assert {"healthz", "readyz", "metrics", "health", "ping", "version"} == PUBLIC and {
        "/docs",
        "/openapi.json",
    } == PUBLIC_PATHS


def test_no_route_is_declared_twice() -> None:
    declared = [(route.method, route.path) for route in DECLARED]
    assert len(set(declared)) == len(declared)
    names = [route.endpoint.__name__ for route in DECLARED]
    assert len(set(names)) == len(names), "the guard knows routes by their endpoints' names"


@pytest.mark.parametrize("prefix", ["/v1", "/v1/", "/v1/admin/keys", "/v1/file", "/docs/x", "/openapi.yaml", "/redoc"])
async def test_what_is_not_there_is_not_there_with_or_without_a_key(gateway: Gateway, prefix: str) -> None:
    for headers in ({}, {"authorization": f"Bearer {gateway.key}"}):
        assert (await ask(gateway, "GET", prefix, headers)).status_code == 404


# Job ids and model names are the caller's: a guard that looks at the path for a public name lets these in.
@pytest.mark.parametrize("name", [*sorted(PUBLIC), "docs", "openapi.json"])
async def test_a_public_name_within_another_path_opens_nothing(gateway: Gateway, name: str) -> None:
    for path in (f"/v1/models/{name}", f"/v1/embeddings/jobs/{name}", f"/v1/models/x/{name}", f"/v1/models/{name}/x"):
        reply = await ask(gateway, "GET", path, {})
        assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key"), path
