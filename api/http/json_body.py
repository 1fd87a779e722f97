"""JSON bodies with an `input`: small ones decoded at once, large ones a piece at a time, beside the event loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from engine.corpus import json_spans
from engine.corpus.json_items import read_numbers
from engine.corpus.lines import explain_line
from engine.embedding.body_errors import decode, double_key_error
from models.errors import InvalidInput, RequestError

Body = TypeVar("Body", bound=msgspec.Struct)
Fields = TypeVar("Fields")
InputValue = str | list[Any]

# A body that is no larger, or has no more brackets, quotes and commas than this, is decoded in a few milliseconds.
INLINE_BYTES = 64 * 1024
CHEAP_BYTES = 4 * 1024 * 1024
CHEAP_COUNTS = ((b"[", 8_192), (b"{", 8_192), (b'"', 32_768), (b",", 262_144))
MAX_OPTIONS_BYTES = 16 * 1024
NOT_JSON = "The body is not valid JSON: check quotes, commas and brackets."
# The fields beside `input` and the two that have a limit of their own.
MAX_FIELD_BYTES = 64 * 1024
_OPTIONS = ("providerOptions", "metadata")
_INPUTS = msgspec.json.Decoder(list[str | int | list[int]])
_TEXT = msgspec.json.Decoder(str)
_JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Span:
    """The byte range of the value of `input` in a body; `kind` is its first byte."""

    start: int
    stop: int
    kind: bytes


def is_cheap(body: bytes) -> bool:
    """True when decoding the whole body takes few milliseconds and creates few objects."""
    if len(body) <= INLINE_BYTES:
        return True
    return len(body) <= CHEAP_BYTES and all(body.count(mark) <= limit for mark, limit in CHEAP_COUNTS)


def check_options(options: object, name: str) -> None:
    """Raises InvalidInput for options that are longer than we keep."""
    if options and len(msgspec.json.encode(options)) > MAX_OPTIONS_BYTES:
        raise _too_long(name, MAX_OPTIONS_BYTES)


def split_input(decoder: msgspec.json.Decoder[Body], body: bytes) -> tuple[Body, Span | None]:
    """The body with an empty `input`, and the span of its input; None when the input is neither a string nor an array.

    Raises InvalidInput, UnsupportedParameter.
    """
    return split_members(lambda fields: decode(decoder, fields), decoder.type.__struct_fields__, body)


def split_members(read: Callable[[bytes], Fields], names: Collection[str], body: bytes) -> tuple[Fields, Span | None]:
    """What `read` makes of the body with an empty `input`, and the span of its input. `names`: the known fields.

    Raises as `read` does, and InvalidInput for a field that is too long.
    """
    try:
        spans = json_spans.members(body)
    except json_spans.DoubleKey as error:
        raise double_key_error(_field_name(error.key)) from None
    except json_spans.Malformed:
        spans = {}
    if not spans:
        # Of what has no members nothing large can be made; but a large body is not decoded to find out more.
        read(body if len(body) <= CHEAP_BYTES else body[:64])
        raise InvalidInput(NOT_JSON, code="invalid_json")
    found: Span | None = None
    fields: list[bytes] = []
    seen: set[str] = set()
    for key, (start, stop) in spans.items():
        name = _field_name(key)
        if name in seen:  # once with an escaped letter
            raise double_key_error(name)
        seen.add(name)
        if name == "input" and (kind := json_spans.first_byte(body, start, stop)) in (b'"', b"["):
            found = Span(start, stop, kind)
            fields.append(b'"input":""')
            continue
        limit = MAX_OPTIONS_BYTES if name in _OPTIONS else MAX_FIELD_BYTES
        if stop - start > limit:
            if name in names:
                raise _too_long(name, limit)
            fields.append(key + b":0")  # null would be as good as absent
        else:
            fields.append(key + b":" + body[start:stop])
    return read(b"{" + b",".join(fields) + b"}"), found


def read_inputs(body: bytes, span: Span, *, max_inputs: int, max_tokens: int) -> Iterator[InputValue]:
    """The input of a sync request: yields the inputs read so far after each piece, and all of them last.

    Raises InvalidInput that names the first invalid item.
    """
    if span.kind == b'"':
        yield _text(body[span.start : span.stop])
        return
    opening = body.index(b"[", span.start) + 1
    if json_spans.first_byte(body, opening, span.stop) in b"-0123456789" and not _is_empty(body, opening, span.stop):
        try:
            yield read_numbers(body, span.start, span.stop, limit=max_tokens)
        except ValueError:
            raise InvalidInput(
                "Invalid 'input': expected an array of token ids.", param="input", code="invalid_type"
            ) from None
        return
    count = json_spans.count_items(body, span.start, span.stop, limit=CHEAP_COUNTS[0][1])
    if count > max_inputs:
        raise too_many_inputs(max_inputs, count, more=count > CHEAP_COUNTS[0][1])
    inputs: list[Any] = []
    for low, high, item_count in json_spans.items(body, span.start, span.stop):
        piece = body[low:high]
        try:
            if item_count == 1 and json_spans.first_byte(piece, 0, len(piece)) == b"[":
                inputs.append(read_numbers(piece, 0, len(piece), limit=max_tokens))
            else:
                inputs += _INPUTS.decode(b"[" + piece + b"]")
        except (ValueError, *_JSON_ERRORS):
            raise _invalid_item(piece, len(inputs)) from None
        yield inputs
    if not inputs:
        yield inputs


def too_many_inputs(max_inputs: int, count: int, *, more: bool = False, name: str = "input") -> InvalidInput:
    """The error for `count` inputs; `more`: there are more than `count - 1`, and they were not all counted."""
    return InvalidInput(
        f"Invalid '{name}': array too long. Expected an array with maximum length {max_inputs}, "
        f"but got {'more than ' if more else ''}{count - more}. "
        "Send several requests, or one job (POST /v1/embeddings/jobs).",
        param=name,
        code="array_above_max_length",
    )


def locate_invalid_input(body: bytes, error: RequestError) -> RequestError:
    """A better error for a body that is not JSON because of one of its inputs; else the error as it is."""
    try:
        spans = {_field_name(key): span for key, span in json_spans.members(body).items()}
        start, stop = spans["input"]
        kind = json_spans.first_byte(body, start, stop)
        if kind == b'"':
            _text(body[start:stop])
        elif kind == b"[":
            opening = body.index(b"[", start)
            _check_items(body[opening:stop], 0)
    except InvalidInput as found:
        return found
    except (json_spans.Malformed, KeyError, ValueError):
        return error
    return error


def _check_items(array: bytes, first_index: int) -> None:
    for position, (low, high, _) in enumerate(json_spans.items(array, 0, len(array), piece_bytes=1)):
        item = array[low:high].strip()
        try:
            item.decode("utf-8")
            msgspec.json.decode(item, type=msgspec.Raw)  # whether it is JSON, and nothing more
        except _JSON_ERRORS:
            reason, _ = explain_line(item, "item")
            param = f"input[{first_index + position}]"
            raise InvalidInput(f"Invalid '{param}': {reason.message}.", param=param, code="invalid_json") from None


def _invalid_item(piece: bytes, first_index: int) -> InvalidInput:
    """The error for the first invalid item of a piece."""
    array = b"[" + piece + b"]"
    try:
        _check_items(array, first_index)
        for position, (low, high, _) in enumerate(json_spans.items(array, 0, len(array), piece_bytes=1)):
            try:
                _INPUTS.decode(b"[" + array[low:high] + b"]")
            except _JSON_ERRORS:
                param = f"input[{first_index + position}]"
                return InvalidInput(
                    f"Invalid '{param}': expected a string or an array of token ids.", param=param, code="invalid_type"
                )
    except InvalidInput as found:
        return found
    return InvalidInput(NOT_JSON, code="invalid_json")


def _text(value: bytes) -> str:
    try:
        return _TEXT.decode(value)
    except _JSON_ERRORS:
        reason, _ = explain_line(value.strip(), "input")
        raise InvalidInput(f"Invalid 'input': {reason.message}.", param="input", code="invalid_json") from None


def _is_empty(body: bytes, opening: int, stop: int) -> bool:
    return json_spans.first_byte(body, opening, stop) == b""


def _field_name(key: bytes) -> str:
    try:
        name = json.loads(key)
    except ValueError:
        return ""
    return name if isinstance(name, str) else ""


def _too_long(name: str, limit: int) -> InvalidInput:
    return InvalidInput(
        f"Invalid '{name}': longer than {limit} bytes as JSON. Send less of it.", param=name, code="invalid_value"
    )
