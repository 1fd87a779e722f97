"""Reads error replies in the envelopes that vendors use.

Text counts only where the vendor wrote it: `error.message`, `error` as a text, a flat `message`, Fireworks'
`fault.faultstring`, Cloudflare's `errors`; and `detail` as a text of the vendors whose own words it holds
(`traits.detail_is_message`). A validator's `detail` list (pydantic, FastAPI), a raw body and an HTML page may quote
what a caller sent: their text is not read.
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

# `litellm.BadRequestError: OpenAIException - `, also doubled: the class is LiteLLM's own code of the error (1.109). The
# OpenAI client that it uses may have put the status before the server's words (1.108.7).
_WRAPPER = re.compile(
    r"(?:litellm\.)?([A-Z]\w{2,60}(?:Error|Exception))(?: [A-Z]\w{2,60}Error)?(?:: | - )(?:Error code: \d{3} - )?"
)
# Jina begins its texts with the request's id.
_REQUEST_ID = re.compile(r"\[RID: [\w-]{1,80}\] ?")
_INPUT_FIELDS = ("input", "inputs", "texts")
# Infinity's body is a union: a finding's place begins with the variant, ["body", "text", "input", …] (0.0.78).
_VARIANTS = ("text", "image", "audio")
_INPUT_PLACE = re.compile(r"(?:\$\.)?(?:inputs?|texts)(?:\[(\d{1,6})\]|\.(\d{1,6}))")
# At the beginning of a message: nothing before the number is a caller's.
_INPUT_IN_MESSAGE = re.compile(
    r"Invalid 'input\[(\d{1,6})\]'"  # OpenAI
    r"|(?:invalid request: )?\w{1,30} contains an element that is the empty string at index (\d{1,6})\b"  # Cohere
    r"|\* ?\w{1,60}\.requests\[(\d{1,6})\]"  # Google
    r"|Malformed input request: #/texts/(\d{1,6})\b"  # Bedrock
    r"|Request to model '[^']{1,200}' failed\. The example at index (\d{1,6})\b"  # Voyage (from memory)
)
# Fields with structured codes: in an error object, in Azure's `innererror` and in Google's `details`.
_CODE_NAMES = ("code", "type", "status", "error_type", "reason", "error_code", "errorcode", "__type")
_NUMBERED_CODES = range(1000, 1_000_000)  # a smaller number repeats the status
DAILY_QUOTA = "quota_per_day"
# What Google's quota ids say: `EmbedContentRequestsPerDayPerProjectPerModel-FreeTier`.
_QUOTA_IDS = (
    (re.compile("PerDay"), DAILY_QUOTA),
    (re.compile("Requests?Per"), "requests"),
    (re.compile("Tokens?Per"), "tokens"),
)
_LIMIT_HEADERS = ("retry-after", "x-ratelimit-")


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """One error reply. Texts of codes and fields are lower-case."""

    status: int
    codes: frozenset[str] = frozenset()
    message: str = ""  # without LiteLLM's wrapping; "" where the reply has no vendor's envelope
    fields: frozenset[str] = frozenset()  # fields of the request that it names
    position: int | None = None  # of the input that it names: a hint, no proof
    numbers: Mapping[str, int] | None = None  # llama.cpp's n_ctx and n_prompt_tokens
    retry_delay: str | None = None  # Google's RetryInfo ("34s"), or Hugging Face's seconds until the model is loaded
    headers: Mapping[str, str] | None = None  # of the provider behind a gateway: when to call again


def error_facts(status: int, body: bytes, *, detail_is_message: bool = False) -> ErrorFacts:
    """Read an error body; it may hold anything."""
    try:
        document = msgspec.json.decode(body) if len(body) <= MAX_BODY_BYTES else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = None
    return facts_of(status, document, detail_is_message=detail_is_message)


def facts_of(status: int, document: object, *, detail_is_message: bool = False) -> ErrorFacts:
    """The same for a decoded body."""
    if isinstance(document, list) and document:  # Google wraps the whole in a list
        document = document[0]
    if not isinstance(document, dict):
        return ErrorFacts(status)
    error = _error_object(document)
    codes = {*_codes(error), *_validator_codes(error, document), *_quota_codes(error)}
    message = _message(error, document, detail_is_message=detail_is_message)
    text = message[:MAX_MESSAGE_CHARS].strip()
    if prefix := _REQUEST_ID.match(text):
        text = text[prefix.end() :]
    while wrapper := _WRAPPER.match(text):
        codes.add(wrapper[1].lower())
        text = text[wrapper.end() :]
    fields, position = _named_fields(error, document)
    named = _INPUT_IN_MESSAGE.match(text)
    if named and position is None:
        position = int(named[named.lastindex or 1])
    numbers = {name: error[name] for name in ("n_ctx", "n_prompt_tokens") if isinstance(error.get(name), int)}
    delay, headers = _retry_delay(error, document), _headers_behind(error)
    return ErrorFacts(status, frozenset(codes), text, fields, position, numbers or None, delay, headers)


def _error_object(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object that holds the codes and the message; the document itself where it is flat."""
    error = document.get("error")
    if isinstance(error, dict):
        return error
    fault = document.get("fault")
    if isinstance(fault, dict):  # the gateway before Fireworks
        detail = fault.get("detail")
        return {**(detail if isinstance(detail, dict) else {}), "message": fault.get("faultstring")}
    errors = document.get("errors")
    if document.get("success") is False and isinstance(errors, list) and errors:  # Cloudflare
        return errors[0] if isinstance(errors[0], dict) else {}
    if isinstance(error, list) and error:  # Hugging Face
        error = error[0]
    return {**document, "message": error or document.get("message") or document.get("Message")}


def _message(error: Mapping[str, Any], document: Mapping[str, Any], *, detail_is_message: bool) -> str:
    message = error.get("message")
    if not isinstance(message, str) and detail_is_message:
        message = document.get("detail")
        if isinstance(message, dict):  # DeepInfra
            message = message.get("error")
    return message if isinstance(message, str) else ""


def _codes(error: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    for name in _CODE_NAMES:
        value = error.get(name)
        if isinstance(value, str) and len(value) <= 100:
            yield value.lower()
        elif isinstance(value, int) and value in _NUMBERED_CODES:
            yield str(value)
    if depth < 3:
        inner = error.get("innererror")
        details = error.get("details")
        for each in [inner, *(details[:10] if isinstance(details, list) else ())]:
            if isinstance(each, dict):
                yield from _codes(each, depth + 1)


def _validator_codes(error: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    """What a validator found, by its own `type`: an unknown field, or inputs or an input that are too long."""
    for kind, place in _findings(error, document):
        is_input = bool(place) and place[0] in _INPUT_FIELDS
        if kind == "extra_forbidden":
            yield kind
        elif kind == "too_long" and is_input and not any(map(_is_index, place)):
            yield "array_above_max_length"
        elif kind == "string_too_long" and is_input:
            yield "string_above_max_length"


def _quota_codes(error: Mapping[str, Any]) -> Iterator[str]:
    for each in _details(error):
        violations = each.get("violations")
        for violation in violations[:10] if isinstance(violations, list) else ():
            quota_id = violation.get("quotaId") if isinstance(violation, dict) else None
            if isinstance(quota_id, str):
                yield from (code for pattern, code in _QUOTA_IDS if pattern.search(quota_id[:200]))


def _named_fields(error: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[frozenset[str], int | None]:
    """The fields of the request that are named by `param` or by a validator's `loc`, and the input's position."""
    fields: set[str] = set()
    position: int | None = None
    param = error.get("param")
    if isinstance(param, str) and len(param) <= 100:
        param = param.removeprefix("body.")  # vLLM 0.32
        named = _INPUT_PLACE.fullmatch(param)
        position = int(named[named.lastindex or 1]) if named else None
        fields.add("input" if named else param.lower())
    for _, place in _findings(error, document):
        names = [each.lower() for each in place if isinstance(each, str)]
        numbers = [each for each in place if _is_index(each)]
        fields.update(names[:1])
        if names[:1] and names[0] in _INPUT_FIELDS and numbers and position is None and 0 <= numbers[0] < 10**6:
            position = numbers[0]
    return frozenset(fields), position


def _is_index(place: object) -> bool:
    return isinstance(place, int) and not isinstance(place, bool)


def _findings(error: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[tuple[object, list[Any]]]:
    """The type of each finding of a validator, and its place below the body's field."""
    message = error.get("message")  # Mistral puts FastAPI's object there
    for holder in (error, document, message):
        detail = holder.get("detail") if isinstance(holder, dict) else None
        for each in detail[:100] if isinstance(detail, list) else ():
            if isinstance(each, dict) and isinstance(each.get("loc"), list):
                place = [part for part in each["loc"] if part != "body"]
                yield each.get("type"), place[1:] if len(place) > 1 and place[0] in _VARIANTS else place


def _details(error: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Google's `details`."""
    details = error.get("details")
    return (each for each in (details[:10] if isinstance(details, list) else ()) if isinstance(each, dict))


def _retry_delay(error: Mapping[str, Any], document: Mapping[str, Any]) -> str | None:
    for each in _details(error):
        delay = each.get("retryDelay")
        if isinstance(delay, str) and len(delay) <= 20:
            return delay
    estimate = document.get("estimated_time")
    return f"{estimate}" if isinstance(estimate, int | float) and not isinstance(estimate, bool) else None


def _headers_behind(error: Mapping[str, Any]) -> dict[str, str] | None:
    """The hints that OpenRouter passes on in `metadata.headers`."""
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    if not isinstance(headers, dict):
        return None
    named = {name.lower(): f"{value}" for name, value in headers.items() if isinstance(value, str | int | float)}
    return {name: value[:40] for name, value in named.items() if name.startswith(_LIMIT_HEADERS)} or None
