"""The OpenAPI document: endpoints read raw bytes for speed, so their bodies and answers are described by hand."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI

from api.http import schemas

JSON = "application/json"
BINARY = {"schema": {"type": "string", "format": "binary"}}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
}
REF = "#/components/schemas/{name}"


def install(app: FastAPI, *, root_path: str = "") -> None:
    """Add our schemas, the key's scheme and the path in front of ours to the document that FastAPI generates."""
    generate = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            generated = generate()
            _, components = msgspec.json.schema_components(schemas.DOCUMENTED, ref_template=REF)
            parts = generated.setdefault("components", {})
            parts.setdefault("schemas", {}).update(components)
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            generated["security"] = [{"key": []}]
            if root_path:
                generated["servers"] = [{"url": root_path}]
            app.openapi_schema = generated
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def operation(
    summary: str, tag: str, status: int = 200, reply: type | None = None, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Arguments of `add_api_route` for one operation. `reply`: the struct of a successful answer, when it is JSON.

    `extra` is merged into the operation object: parameters, body, further responses.
    """
    failure = {"description": "An error", "content": {JSON: {"schema": schema_ref(schemas.ErrorEnvelope)}}}
    success: dict[str, Any] = {"description": "Done"}
    if reply is not None:
        success["content"] = {JSON: {"schema": schema_ref(reply)}}
    return {
        "summary": summary,
        "tags": [tag],
        "status_code": status,
        "responses": {status: success, "4XX": failure, "5XX": failure},
        "openapi_extra": extra or {},
    }


def json_body(kinds: dict[str, type]) -> dict[str, Any]:
    """A required request body; `kinds` maps a media type to its struct."""
    return {"required": True, "content": {kind: {"schema": schema_ref(struct)} for kind, struct in kinds.items()}}


def schema_ref(struct: type) -> dict[str, str]:
    """A reference to the schema of a struct."""
    return {"$ref": REF.format(name=struct.__name__)}


def query_param(name: str, description: str) -> dict[str, Any]:
    """An optional query parameter."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "string"}}


def path_param(name: str, description: str) -> dict[str, Any]:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
