"""Reads the body of a dialect: small ones at once, large ones in the work threads, their inputs a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from api.http import json_body
from api.http.auth import caller_of, runtime_of
from api.http.json_body import INLINE_BYTES, NOT_JSON
from api.openai.embedding_call import CallWarning
from engine.corpus import json_spans
from engine.embedding.body_errors import decode, double_key_error
from models.errors import InvalidInput, RequestError

Body = TypeVar("Body", bound=msgspec.Struct)
Item = TypeVar("Item")
Input = TypeVar("Input")
SMALL_ARRAY_BYTES = 1024
MAX_WARNINGS = 16
ABSENT = msgspec.Raw(b"null")
"""A field that has no inputs."""
TEXT_OR_TEXTS = msgspec.json.Decoder(str | list[str])
TEXTS = msgspec.json.Decoder(list[str])
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_JSON_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


async def read_body(
    request: Request, raw: bytes, decoder: msgspec.json.Decoder[Body]
) -> tuple[Body, list[CallWarning]]:
    """The fields of the body, its inputs still as JSON, and warnings for unknown fields that were left out.

    Raises InvalidInput or UnsupportedParameter that names the field.
    """
    runtime = runtime_of(request)
    warn = runtime.settings.unknown_parameters == "warn"
    if len(raw) <= INLINE_BYTES:
        return _read(decoder, raw, warn)

    def read_large() -> tuple[Body, list[CallWarning]]:
        try:
            json_spans.members(raw)
        except json_spans.DoubleKey as error:
            raise double_key_error(error.key.decode("utf-8", "replace").strip('"')) from None
        except json_spans.Malformed:
            raise InvalidInput(NOT_JSON, code="invalid_json") from None
        return _read(decoder, raw, warn)

    return await runtime.work.run(caller_of(request).project, read_large)


def _read(decoder: msgspec.json.Decoder[Body], raw: bytes, warn: bool) -> tuple[Body, list[CallWarning]]:
    try:
        return _decode(decoder, raw), []
    except RequestError as error:
        if error.code != "unknown_parameter" or not warn:
            raise
    known = decoder.type.__struct_encode_fields__
    fields = _FIELDS.decode(raw)
    unknown = [name for name in fields if name not in known]
    members = (msgspec.json.encode(name) + b":" + bytes(value) for name, value in fields.items() if name in known)
    warnings = [
        CallWarning("unsupported", name[:100], "no such parameter is known: it was left out")
        for name in unknown[:MAX_WARNINGS]
    ]
    return _decode(decoder, b"{" + b",".join(members) + b"}"), warnings


def _decode(decoder: msgspec.json.Decoder[Body], raw: bytes) -> Body:
    if len(raw) <= INLINE_BYTES:
        return decode(decoder, raw)
    try:
        return decoder.decode(raw)
    except _JSON_ERRORS:
        return decode(decoder, raw)  # says what is wrong


def is_there(value: msgspec.Raw) -> bool:
    """True for a field that is there, and is not null."""
    return bytes(memoryview(value)[:4]) != b"null"


async def read_items(
    request: Request,
    value: msgspec.Raw,
    name: str,
    decoder: msgspec.json.Decoder[list[Item]],
    convert: Callable[[Item, int], Input],
) -> list[Input]:
    """The array of inputs in the field `name`: what `convert` makes of each item and its index.

    Raises InvalidInput that names the first wrong item, and what `convert` raises.
    """
    runtime = runtime_of(request)
    if len(memoryview(value)) <= INLINE_BYTES:
        try:
            items: list[Item] | None = decoder.decode(value)
        except _JSON_ERRORS:
            items = None  # the pieces say which item is wrong
        if items is not None:
            return [convert(item, index) for index, item in enumerate(items)]
    inputs: list[Input] = []
    pieces = _pieces(value, name, decoder, convert, runtime.settings.max_inputs_per_request)
    async for piece in runtime.work.drive(caller_of(request).project, pieces):
        inputs += piece
    return inputs


def itself(item: Item, index: int) -> Item:
    """For items that are inputs as they are."""
    return item


def only_item(value: msgspec.Raw, decoder: msgspec.json.Decoder[list[Item]]) -> Item | None:
    """The item of an array of one; None for any other value. A long array is not decoded to find out."""
    size = len(memoryview(value))
    try:
        if size > SMALL_ARRAY_BYTES and json_spans.count_items(bytes(value), 0, size, limit=1) != 1:
            return None
        items = decoder.decode(value)
    except (json_spans.Malformed, *_JSON_ERRORS):
        return None
    return items[0] if len(items) == 1 else None


async def read_texts(request: Request, value: msgspec.Raw, name: str) -> str | list[str]:
    """The text or texts in the field `name`. Raises InvalidInput that names the first wrong item."""
    if bytes(memoryview(value)[:1]) != b'"':
        return await read_items(request, value, name, TEXTS, itself)

    def read() -> Any:
        try:
            return TEXT_OR_TEXTS.decode(value)
        except _JSON_ERRORS:
            raise InvalidInput(f"Invalid '{name}': expected a text.", param=name, code="invalid_json") from None

    if len(memoryview(value)) <= INLINE_BYTES:
        text: str = read()
        return text
    large: str = await runtime_of(request).work.run(caller_of(request).project, read)
    return large


async def read_text(request: Request, value: msgspec.Raw, name: str) -> str:
    """The one text in the field `name`. Raises InvalidInput for a list."""
    text = await read_texts(request, value, name) if bytes(memoryview(value)[:1]) == b'"' else None
    if not isinstance(text, str):
        raise InvalidInput(f"Invalid '{name}': expected a text.", param=name, code="invalid_type")
    return text


def _pieces(
    value: msgspec.Raw,
    name: str,
    decoder: msgspec.json.Decoder[list[Item]],
    convert: Callable[[Item, int], Input],
    max_inputs: int,
) -> Iterator[list[Input]]:
    array = bytes(value)
    try:
        count = json_spans.count_items(array, 0, len(array), limit=2 * max_inputs)
        if count > max_inputs:
            raise json_body.too_many_inputs(max_inputs, count, more=count > 2 * max_inputs, name=name)
        done = 0
        for low, high, number in json_spans.items(array, 0, len(array)):
            items = _piece(array[low:high], done, name, decoder)
            yield [convert(item, done + position) for position, item in enumerate(items)]
            done += number
    except json_spans.Malformed:
        raise InvalidInput(f"Invalid '{name}': expected an array.", param=name, code="invalid_type") from None


def _piece(piece: bytes, first: int, name: str, decoder: msgspec.json.Decoder[list[Item]]) -> list[Item]:
    array = b"[" + piece + b"]"
    try:
        return decoder.decode(array)
    except _JSON_ERRORS:
        pass
    for position, (low, high, _) in enumerate(json_spans.items(array, 0, len(array), piece_bytes=1)):
        try:
            decoder.decode(b"[" + array[low:high] + b"]")
        except _JSON_ERRORS as error:
            param = f"{name}[{first + position}]"
            is_json = isinstance(error, msgspec.ValidationError)
            reason = str(error).replace("`", "").replace("Expected", "expected") if is_json else "it is not valid JSON"
            code = "invalid_type" if is_json else "invalid_json"
            raise InvalidInput(f"Invalid '{param}': {reason}.", param=param, code=code) from None
    raise InvalidInput(NOT_JSON, code="invalid_json")
