"""The Content-Type of a body, and the advice when it is missing or unsupported."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from api.http.request_headers import header
from models.errors import UnsupportedMediaType

JSON = "application/json"
FORM_URLENCODED = "application/x-www-form-urlencoded"
UTF8_CHARSETS = frozenset({"", "utf-8", "utf8", "us-ascii", "ascii"})  # ASCII is a part of UTF-8
STREAM_TYPES = (
    "application/x-ndjson (a JSON value per line), text/plain (a text per line), text/csv or "
    "application/vnd.apache.parquet"
)


def media_type(request: Request) -> str:
    """The type without its parameters; JSON where none is given."""
    return header(request, b"content-type", JSON).partition(";")[0].strip().lower()


def require_utf8(content_type: str) -> None:
    """Raises UnsupportedMediaType where the header names another encoding: the text would be read as another one."""
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip("\"'")
        if name.strip().lower() == "charset" and charset.lower() not in UTF8_CHARSETS:
            raise UnsupportedMediaType(
                f"The charset '{charset[:40]}' of Content-Type is not supported. "
                "Encode the body as UTF-8, and send charset=utf-8 or no charset.",
                param="content-type",
            )


def unsupported(kind: str, supported: Sequence[str]) -> UnsupportedMediaType:
    """The error for an unsupported Content-Type, with the header to send instead."""
    advice = f"Send the header Content-Type: {JSON} with a JSON body"
    if len(supported) > 1:
        advice += f", or with a streamed corpus Content-Type: {STREAM_TYPES}"
    if kind == FORM_URLENCODED:
        advice += (
            f". curl sends this one with -d and --data-binary unless told otherwise: add -H 'Content-Type: {JSON}'"
        )
    return UnsupportedMediaType(
        f"Content-Type '{kind[:80]}' is not supported. {advice}. Supported: {', '.join(supported)}.",
        param="content-type",
    )


def require_content_type(request: Request) -> None:
    """A corpus that is streamed has its parameters in the query, and must say what it is. Raises UnsupportedMediaType.

    Without the header it would be taken for JSON, and the first parameter called unknown.
    """
    if "content-type" not in request.headers and request.query_params:
        raise UnsupportedMediaType(
            f"The request has no Content-Type. Send the header Content-Type: {STREAM_TYPES} with a streamed corpus. "
            f"With a JSON body, its parameters belong into the body, and not into the query.",
            param="content-type",
        )


def missing_model_message(kind: str) -> str:
    """The message for a streamed corpus without a model."""
    return (
        f"Missing required parameter: 'model'. With Content-Type '{kind}' it belongs into the query (?model=…). "
        f"A request that holds model and input in a JSON body needs the header Content-Type: {JSON}."
    )
