"""Reads the first of the `errors` that Cloudflare and IBM put into their error replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from providers.error_envelope import MAX_BODY_BYTES


def first_error_of(body: bytes) -> Mapping[str, Any]:
    """The first error of an error body, which may hold anything; empty where there is none."""
    try:
        return first_error(msgspec.json.decode(body)) if len(body) <= MAX_BODY_BYTES else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def first_error(document: object) -> Mapping[str, Any]:
    """The first error of a decoded body; empty where there is none."""
    errors = document.get("errors") if isinstance(document, dict) else None
    error = errors[0] if isinstance(errors, list) and errors else None
    return error if isinstance(error, dict) else {}
