"""What is wrong with a line of a batch file: the first fault, in OpenAI's words. Pure."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from engine.corpus.double_keys import double_key
from engine.corpus.lines import EXPLAINED_BYTES, MAX_ID_BYTES
from engine.embedding.body_errors import explain
from engine.embedding.request_body import EmbeddingRequest, Positive, ShortText

ENDPOINT = "/v1/embeddings"
NOT_JSON = "This line is not parseable as valid JSON."
JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ENDLESS_NUMBER = re.compile(rb"[\[,:]\s*-?[\d.]{1000}")
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class LineFault(msgspec.Struct, frozen=True):
    """Why a line cannot run. `param` and `status` are those of a sync answer, unless it is an invalid request line.

    `is_invalid_request_line`: the frame is wrong, the model is missing, or a stream is wanted. `custom_id`: None where
    it cannot be read.
    """

    code: str
    message: str
    param: str | None
    custom_id: str | None = None
    status: int = 400
    is_invalid_request_line: bool = True


class BatchBody(msgspec.Struct, forbid_unknown_fields=True):
    """As EmbeddingRequest; the model may be that of the batch."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    dimensions: Positive | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815  # the wire's spelling


class _Frame(msgspec.Struct):
    custom_id: msgspec.Raw = msgspec.Raw(b"null")
    method: msgspec.Raw = msgspec.Raw(b"null")
    url: msgspec.Raw = msgspec.Raw(b"null")
    body: msgspec.Raw = msgspec.Raw(b"null")


class _BodyFrame(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw(b"null")
    stream: msgspec.Raw = msgspec.Raw(b"null")


_FRAME = msgspec.json.Decoder(_Frame)
_BODY = msgspec.json.Decoder(BatchBody)
_BODY_FRAME = msgspec.json.Decoder(_BodyFrame)


def has_endless_number(document: bytes) -> bool:
    """True where a number has more digits than can be read in a moment.

    Millions of them would hold the interpreter's lock for a good part of a second.
    """
    if _ENDLESS_NUMBER.search(document) is None:
        return False
    return _ENDLESS_NUMBER.search(_STRINGS.sub(b'""', document)) is not None


def find_double_key(line: bytes, custom_id: str) -> LineFault | None:
    """The key that an object of the line has twice. Fields beside the known ones make this look necessary too."""
    try:
        line.decode("utf-8")  # which is not asked of fields that are passed over
    except UnicodeDecodeError:
        return LineFault("invalid_json_line", f"{NOT_JSON} Its text is not valid UTF-8.", None, custom_id)
    key = double_key(line)
    if key is None:
        return None
    if key.startswith("body."):
        where = key.removeprefix("body.")[:100]
        return refusal("duplicate_key", f"The key '{where}' occurs twice: send it once.", where, custom_id)
    readable = None if key == "custom_id" else custom_id
    return LineFault("duplicate_key", f"The key '{key[:100]}' occurs twice: send it once.", key[:100], readable)


def refusal(code: str, message: str, param: str | None, custom_id: str) -> LineFault:
    return LineFault(code, message, param, custom_id, is_invalid_request_line=False)


def line_too_long(max_line_bytes: int) -> LineFault:
    """The fault of a line that the reader does not keep."""
    message = f"This line is longer than {max_line_bytes} bytes. Send its inputs in several lines."
    return LineFault("line_too_long", message, None)


def no_model(custom_id: str) -> LineFault:
    return LineFault("invalid_request", "Model parameter is required.", "body.model", custom_id)


def bad_id() -> LineFault:
    message = f"Invalid 'custom_id': expected 1 to {MAX_ID_BYTES} bytes."
    return LineFault("invalid_value", message, "custom_id")


def _missing(param: str, custom_id: str | None) -> LineFault:
    return LineFault("missing_required_parameter", f"Missing required parameter: '{param}'.", param, custom_id)


def _wrong_type(param: str, expected: str, value: bytes, custom_id: str | None) -> LineFault:
    message = f"Invalid type for '{param}': expected {expected}, but got {_kind_of(value)} instead."
    return LineFault("invalid_type", message, param, custom_id)


def _kind_of(value: bytes) -> str:
    kinds = {b'"': "a string", b"[": "an array", b"{": "an object", b"n": "null", b"t": "a boolean", b"f": "a boolean"}
    return kinds.get(value.lstrip()[:1], "a number")


def explain_line(line: bytes, default_model: str | None) -> LineFault:
    """The first fault of a line that is no request."""
    try:
        line.decode("utf-8")
        document = bytes(msgspec.json.decode(line, type=msgspec.Raw))
        if document.lstrip()[:1] == b"{":
            return _explain_frame(document, default_model)
    except RecursionError:
        return LineFault("invalid_json_line", f"{NOT_JSON} Its brackets are nested too deeply.", None)
    except JSON_ERRORS:
        return LineFault("invalid_json_line", NOT_JSON + _why_not_json(line), None)
    return LineFault("invalid_json_line", f"{NOT_JSON} Each line must hold a JSON object.", None)


def _explain_frame(line: bytes, default_model: str | None) -> LineFault:
    frame = _FRAME.decode(line)
    custom_id: str | None = None
    for name in ("custom_id", "method", "url"):
        value = bytes(getattr(frame, name))
        if value == b"null":
            return _missing(name, custom_id)
        if value[:1] != b'"':
            return _wrong_type(name, "a string", value, custom_id)
        text = msgspec.json.decode(value, type=str)
        if name == "custom_id":
            if not text or len(text.encode()) > MAX_ID_BYTES:
                return bad_id()
            custom_id = text
        elif name == "method" and text != "POST":
            return LineFault("invalid_method", "The method of this request must be 'POST'.", "method", custom_id)
        elif name == "url" and text != ENDPOINT:
            message = "The URL provided for this request does not match the batch endpoint."
            return LineFault("invalid_url", message, "url", custom_id)
    body = bytes(frame.body)
    if body == b"null":
        return _missing("body", custom_id)
    if body[:1] != b"{":
        return _wrong_type("body", "an object", body, custom_id)
    assert custom_id is not None
    return _explain_body(line, body, custom_id, default_model)


def _explain_body(line: bytes, body: bytes, custom_id: str, default_model: str | None) -> LineFault:
    frame = _BODY_FRAME.decode(body)
    model = bytes(frame.model)
    if model == b"null" and default_model is None:
        return no_model(custom_id)
    if model != b"null" and model[:1] != b'"':
        return _wrong_type("body.model", "a string", model, custom_id)
    if bytes(frame.stream) == b"true":
        message = "Streaming is not supported in the Batch API: leave 'stream' out."
        return LineFault("streaming_unsupported", message, "body.stream", custom_id)
    if (fault := find_double_key(line, custom_id)) is not None:
        return fault
    try:
        _BODY.decode(body)
    except msgspec.ValidationError as error:
        of_body = explain(error, EmbeddingRequest)
        return refusal(of_body.code, of_body.message, of_body.param, custom_id)
    # The frame was decoded without an error, and so was the body: only its members that are no fields can be at fault.
    return LineFault("invalid_json_line", NOT_JSON, None, custom_id)


def _why_not_json(line: bytes) -> str:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return " Its text is not valid UTF-8."
    if len(line) > EXPLAINED_BYTES:
        return ""
    try:
        json.loads(line)  # which takes NaN and halves of surrogate pairs
    except (ValueError, RecursionError):
        return ""
    if _SURROGATE.search(line):
        return " It holds half of a surrogate pair: one half of an emoji or a rare character is missing."
    return " NaN and Infinity are no JSON numbers."
