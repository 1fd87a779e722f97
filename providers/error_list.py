"""Reads the first of the `errors` that Cloudflare and IBM put into their error replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.error_envelope import MAX_BODY_BYTES


def error_document(body: bytes) -> Mapping[str, Any]:
    """An error body, which may hold anything; empty where it is no JSON object."""
    try:
        document = msgspec.json.decode(body) if len(body) <= MAX_BODY_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def first_error(document: object) -> Mapping[str, Any]:
    """The first error of a decoded body; empty where there is none."""
    errors = document.get("errors") if isinstance(document, dict) else None
    error = errors[0] if isinstance(errors, list) and errors else None
    return error if isinstance(error, dict) else {}
