"""Reads error replies in the envelopes that vendors of OpenAI's wire format use.

Text counts only where the vendor wrote it: `error.message`, a flat `message`, or `error` as a text. A validator's
`detail` (pydantic, FastAPI), a raw body and an HTML page may quote what a caller sent: their text is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

# A longer error body quotes the request, and is not read.
MAX_BODY_BYTES = 1024 * 1024
MAX_MESSAGE_CHARS = 2048

# `litellm.BadRequestError: OpenAIException - `, also doubled: the class is LiteLLM's own code of the error (1.109).
_WRAPPER = re.compile(r"(?:litellm\.)?([A-Z]\w{2,60}(?:Error|Exception))(?: [A-Z]\w{2,60}Error)?(?:: | - )")
_INPUT_PLACE = re.compile(r"(?:\$\.)?inputs?\[(\d{1,6})\]")
_INPUT_IN_MESSAGE = re.compile(r"Invalid 'input\[(\d{1,6})\]'")
# Fields with structured codes: in an error object, in Azure's `innererror` and in Google's `details`.
_CODE_NAMES = ("code", "type", "status", "error_type", "reason", "error_code")


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """One error reply. Texts of codes and fields are lower-case."""

    status: int
    codes: frozenset[str] = frozenset()
    message: str = ""  # without LiteLLM's wrapping; "" where the reply has no vendor's envelope
    fields: frozenset[str] = frozenset()  # fields of the request that it names
    position: int | None = None  # of the input that it names: a hint, no proof
    numbers: Mapping[str, int] | None = None  # llama.cpp's n_ctx and n_prompt_tokens
    retry_delay: str | None = None  # Google's RetryInfo: "34s"


def error_facts(status: int, body: bytes) -> ErrorFacts:
    """Read an error body; it may hold anything."""
    try:
        document = msgspec.json.decode(body) if len(body) <= MAX_BODY_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    return facts_of(status, document)


def facts_of(status: int, document: object) -> ErrorFacts:
    """The same for a decoded body."""
    if isinstance(document, list) and document:  # Google wraps the whole in a list
        document = document[0]
    if not isinstance(document, dict):
        return ErrorFacts(status)
    error = document.get("error")
    error = error if isinstance(error, dict) else {**document, "message": error or document.get("message")}
    message = error.get("message")
    codes = set(_codes(error))
    text = message[:MAX_MESSAGE_CHARS].strip() if isinstance(message, str) else ""
    while wrapper := _WRAPPER.match(text):
        codes.add(wrapper[1].lower())
        text = text[wrapper.end() :]
    fields, position = _named_fields(error, document)
    named = _INPUT_IN_MESSAGE.match(text)
    if named and position is None:
        position = int(named[1])
    numbers = {name: error[name] for name in ("n_ctx", "n_prompt_tokens") if isinstance(error.get(name), int)}
    return ErrorFacts(status, frozenset(codes), text, fields, position, numbers or None, _retry_delay(error))


def _codes(error: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    for name in _CODE_NAMES:
        value = error.get(name)
        if isinstance(value, str) and len(value) <= 100:
            yield value.lower()
    if depth < 3:
        inner = error.get("innererror")
        details = error.get("details")
        for each in [inner, *(details[:10] if isinstance(details, list) else ())]:
            if isinstance(each, dict):
                yield from _codes(each, depth + 1)


def _named_fields(error: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[frozenset[str], int | None]:
    """The fields of the request that are named by `param` or by a validator's `loc`, and the input's position."""
    fields: set[str] = set()
    position: int | None = None
    param = error.get("param")
    if isinstance(param, str) and len(param) <= 100:
        named = _INPUT_PLACE.fullmatch(param)
        position = int(named[1]) if named else None
        fields.add("input" if named else param.lower())
    for loc in _locations(error, document):
        names = [each.lower() for each in loc if isinstance(each, str) and each != "body"]
        numbers = [each for each in loc if isinstance(each, int) and not isinstance(each, bool)]
        fields.update(names[:1])
        if names[:1] in (["input"], ["inputs"]) and numbers and position is None and 0 <= numbers[0] < 10**6:
            position = numbers[0]
    return frozenset(fields), position


def _locations(error: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[list[Any]]:
    message = error.get("message")  # Mistral puts FastAPI's object there
    for holder in (error, document, message):
        detail = holder.get("detail") if isinstance(holder, dict) else None
        for each in detail[:100] if isinstance(detail, list) else ():
            if isinstance(each, dict) and isinstance(each.get("loc"), list):
                yield each["loc"]


def _retry_delay(error: Mapping[str, Any]) -> str | None:
    details = error.get("details")
    for each in details[:10] if isinstance(details, list) else ():
        delay = each.get("retryDelay") if isinstance(each, dict) else None
        if isinstance(delay, str) and len(delay) <= 20:
            return delay
    return None
