"""The OpenAPI document: sound in itself, and it speaks of every route, of each one's body and of the envelope."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from api.dialects.table import TABLE
from api.http.auth import PUBLIC
from api.http.middleware import RequestContext
from tests.gateway import Gateway

Document = dict[str, Any]
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}


@pytest.fixture
async def document(gateway: Gateway) -> Document:
    reply = await gateway.client.get("/openapi.json")
    assert reply.status_code == 200
    found: Document = reply.json()
    return found


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield path, method, operation


def all_routes(gateway: Gateway) -> list[Any]:
    assert isinstance(gateway.app, RequestContext)
    return list(gateway.app._app.routes)  # type: ignore[attr-defined]


def every(node: Any) -> Iterator[Any]:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from every(child)


def test_it_says_what_it_is(document: Document) -> None:
    assert re.match(r"3\.[01]\.", document["openapi"])
    assert document["info"]["title"] == "embedmill" and document["info"]["version"]


def test_every_reference_leads_somewhere(document: Document) -> None:
    references = [node["$ref"] for node in every(document) if isinstance(node, dict) and "$ref" in node]
    assert references
    for reference in references:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        assert isinstance(target, dict)


def test_operations_are_well_formed(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for path, method, operation in operations(document):
        assert operation["summary"] and operation["responses"], (method, path)
        for status, answer in operation["responses"].items():
            assert re.fullmatch(r"[1-5](\d\d|XX)|default", status) and answer["description"]
        declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
        assert declared == set(re.findall(r"\{([^}:]+)", path)), (method, path)
        assert all(each["required"] for each in operation.get("parameters", ()) if each["in"] == "path")
        pairs = [(each["in"], each["name"]) for each in operation.get("parameters", ())]
        assert len(set(pairs)) == len(pairs)


def test_it_names_every_route(document: Document, gateway: Gateway) -> None:
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in all_routes(gateway)
        for method in route.methods
        if getattr(route, "include_in_schema", True)
    }
    assert {(path, method) for path, method, _ in operations(document)} == routes
    assert ("/v1/embeddings", "post") in routes and ("/v1/models/{model}", "get") in routes and len(routes) >= 13


def test_errors_are_the_envelope_everywhere(document: Document) -> None:
    envelope = {"$ref": "#/components/schemas/ErrorEnvelope"}
    dialects = {(re.sub(r":\w+}", "}", entry.path), entry.method.lower()) for entry in TABLE}
    for path, method, operation in operations(document):
        if (path, method) in dialects:
            assert operation["tags"] == ["Compatibility"]
            continue
        for status in ("4XX", "5XX"):
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == envelope, (method, path)
        assert "422" not in operation["responses"]  # the framework's own shape, which we never send
    fields = document["components"]["schemas"]["ErrorBody"]
    assert set(fields["required"]) == {"message", "type", "param", "code"}


def test_what_may_be_sent_is_described(document: Document) -> None:
    schemas = document["components"]["schemas"]
    sync = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]
    assert set(sync) == {"application/json"}
    request = schemas["EmbeddingRequest"]
    assert set(request["required"]) == {"model", "input"} and request["additionalProperties"] is False
    assert {"dimensions", "encoding_format", "user", "input_type", "truncate", "providerOptions"} <= set(
        request["properties"]
    )
    bulk = document["paths"]["/v1/embeddings/jobs"]["post"]
    assert {"application/json", "application/x-ndjson", "text/plain"} <= set(bulk["requestBody"]["content"])
    assert {"model", "dimensions", "Idempotency-Key"} <= {each["name"] for each in bulk["parameters"]}
    assert "202" in bulk["responses"]


def test_a_key_is_asked_for_but_where_none_is_needed(document: Document) -> None:
    assert document["security"] and set(document["security"][0]) <= set(document["components"]["securitySchemes"])
    for path, method, operation in operations(document):
        is_public = path.strip("/") in PUBLIC
        assert (operation.get("security") == []) == is_public, (method, path)
