"""/docs: the OpenAPI document as one page of HTML, made here. It loads nothing, so it works without the internet."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from html import escape
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1f}
summary{cursor:pointer;padding:.3rem 0}code{background:#f2f2f5;padding:.1rem .3rem;border-radius:.2rem}
table{border-collapse:collapse;margin:.5rem 0 1rem;width:100%}td,th{text-align:left;padding:.2rem .6rem .2rem 0;
border-bottom:1px solid #ddd;vertical-align:top}.method{display:inline-block;width:4.5rem;font-weight:600}
"""


def install(app: FastAPI, *, root_path: str = "") -> None:
    """Serve the page at /docs, below `root_path`. It is rendered at the first request."""

    @cache
    def page() -> str:
        return "".join(_page(app.openapi(), root_path))

    async def show(request: Request) -> Response:
        return HTMLResponse(
            page(), headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}
        )

    app.add_route("/docs", show, methods=["GET"], include_in_schema=False)


def _page(document: dict[str, Any], root_path: str) -> Iterator[str]:
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    yield f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    yield f"<style>{STYLE}</style><h1>{escape(title)}</h1><p>{escape(info.get('summary', ''))}</p>"
    yield "<p>Every call needs <code>Authorization: Bearer &lt;key&gt;</code>, but those under Operations. "
    yield f'For programs: <a href="{escape(root_path)}/openapi.json">openapi.json</a>.</p>'
    by_tag: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    schemas = document["components"]["schemas"]
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in operations:
            yield f"<details><summary><span class=method>{method}</span> <code>{escape(path)}</code> "
            yield f"{escape(operation['summary'])}</summary>"
            yield from _operation(operation)
            yield "</details>"
    yield "<h2>Schemas</h2>"
    for name, schema in schemas.items():
        yield f"<details id={escape(name)} open><summary><code>{escape(name)}</code></summary>"
        yield escape(schema.get("description", ""))
        required = set(schema.get("required", ()))
        yield from _table(
            (field, _kind(kind), "required" if field in required else "", kind.get("description", ""))
            for field, kind in schema.get("properties", {}).items()
        )
        yield "</details>"


def _operation(operation: dict[str, Any]) -> Iterator[str]:
    yield from _table(
        (each["name"], f"in {each['in']}", "required" if each.get("required") else "", each.get("description", ""))
        for each in operation.get("parameters", ())
    )
    bodies = operation.get("requestBody", {}).get("content", {})
    yield from _table((kind, _kind(body.get("schema", {})), "", "body") for kind, body in bodies.items())
    yield from _table(
        (status, _kind(content.get("schema", {})), "", kind)
        for status, answer in operation["responses"].items()
        for kind, content in answer.get("content", {"": {}}).items()
    )


def _table(rows: Iterator[tuple[str, str, str, str]]) -> Iterator[str]:
    yield "<table>"
    for name, kind, required, description in rows:
        yield f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{required}<td>{escape(description)}"
    yield "</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A schema in a few words, as HTML; a named one is a link to its description."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for combined in ("anyOf", "oneOf", "allOf"):
        if combined in schema:
            return " or ".join(_kind(each) for each in schema[combined])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_kind(schema['items'])}" if "items" in schema else "array"
    return escape(str(schema.get("type", schema.get("format", "any"))))
