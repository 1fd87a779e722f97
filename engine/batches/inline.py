"""The inline form of a batch: requests in the body become the lines of a file, as they arrive.

What a line says of its model and its input is checked by the validation, as for any other file. Here only what would
spoil the file is refused: bodies that are not JSON, requests without an id or a body, ids that are repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from engine.batches.batch_request import BatchRequest
from engine.batches.custom_ids import CustomIdDigests
from engine.batches.line_faults import JSON_ERRORS, has_endless_number
from engine.batches.lines import ENDPOINT
from engine.corpus.double_keys import ESCAPED_LETTER
from engine.corpus.json_spans import DoubleKey, Malformed, members
from engine.corpus.json_stream import ObjectStream, ValueTooLong
from engine.corpus.lines import EXPLAINED_BYTES, MAX_ID_BYTES, explain_line
from engine.embedding.body_errors import decode, double_key_error, explain
from models.errors import InvalidInput, PayloadTooLarge, RequestError, UnsupportedParameter

ARRAY = "requests"
STEP_BYTES = 128 * 1024
MAX_FIELD_BYTES = 64 * 1024
# Beyond it, the ids of one body would need tens of megabytes of the API's memory. A file has no such limit.
MAX_REQUESTS = 250_000
BYTES_PER_ID = 64  # with what the search for repeated ones needs
# What a line has beside the body of its request and the id, at the most.
FRAME_BYTES = 128 + MAX_ID_BYTES * 6
NOT_JSON = "The body is not valid JSON: check quotes, commas and brackets."


class InlineRequest(msgspec.Struct, forbid_unknown_fields=True):
    """One item of `requests`. `method` and `url`: as in a file, and optional."""

    custom_id: str
    body: msgspec.Raw
    method: str | None = None
    url: str | None = None


_REQUEST = msgspec.json.Decoder(InlineRequest)
_FIELDS = msgspec.json.Decoder(BatchRequest)


def _form(*names: str) -> msgspec.json.Decoder[msgspec.Struct]:
    """Knows these fields, whatever their values are."""
    fields = [(name, Any, None) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("BatchForm", fields, forbid_unknown_fields=True))


_FILE_FORM = _form(*(name for name in BatchRequest.__struct_fields__ if name != "model"))
_INLINE_FORM = _form(ARRAY, *(name for name in BatchRequest.__struct_fields__ if name != "input_file_id"))


class InlineBody:
    """The body of POST /v1/batches in either form. Feed it, take the lines, and finish it for the other fields."""

    def __init__(self, *, max_line_bytes: int) -> None:
        self._max_item_bytes = max(1, max_line_bytes - FRAME_BYTES)
        self._stream = ObjectStream(ARRAY, max_item_bytes=self._max_item_bytes, max_field_bytes=MAX_FIELD_BYTES)
        self._custom_ids = CustomIdDigests()
        self._has_bytes = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes that are kept: of the incomplete request, and of all ids."""
        return self._stream.buffered_bytes + len(self._custom_ids) * BYTES_PER_ID

    @property
    def has_requests(self) -> bool:
        """The body is of the inline form."""
        return self._stream.has_array

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Lines of the file, some at a time. Raises InvalidInput and PayloadTooLarge that name the request."""
        self._has_bytes = self._has_bytes or bool(chunk.strip())
        for low in range(0, len(chunk), STEP_BYTES):
            yield self._lines_of(chunk[low : low + STEP_BYTES])

    def _lines_of(self, piece: bytes) -> bytes:
        first = self._stream.items
        try:
            items = self._stream.feed(piece)
        except DoubleKey as error:
            raise double_key_error(error.key.decode("utf-8", "replace").strip('"')) from None
        except Malformed:
            raise InvalidInput(NOT_JSON, code="invalid_json") from None
        except ValueTooLong as error:
            raise self._too_long(error) from None
        if self._stream.items > MAX_REQUESTS:
            raise PayloadTooLarge(
                f"Invalid '{ARRAY}': more than {MAX_REQUESTS} requests. Send a file, which may have more lines.",
                param=ARRAY,
                code="too_many_requests",
            )
        return b"".join(self._line_of(item, first + position) for position, item in enumerate(items))

    def _too_long(self, error: ValueTooLong) -> RequestError:
        if error.item is None:
            name = error.key[:100]
            return InvalidInput(
                f"Invalid '{name}': longer than {MAX_FIELD_BYTES} bytes as JSON. Send less of it.",
                param=name or None,
                code="invalid_value",
            )
        where = f"{ARRAY}[{error.item}]"
        return PayloadTooLarge(
            f"Invalid '{where}': longer than {self._max_item_bytes} bytes. Send its inputs in several requests.",
            param=where,
        )

    def _line_of(self, item: bytes, index: int) -> bytes:
        where = f"{ARRAY}[{index}]"
        request = _decode_request(item, where)
        body = bytes(request.body)
        custom_id = request.custom_id
        if not custom_id or (len(custom_id) > 128 and len(custom_id.encode()) > MAX_ID_BYTES):
            raise _invalid(f"{where}.custom_id", f"expected 1 to {MAX_ID_BYTES} bytes")
        if body[:1] != b"{":
            raise _invalid(f"{where}.body", "expected an object", "invalid_type")
        if request.method not in (None, "POST"):
            raise _invalid(f"{where}.method", "expected 'POST', or leave it out")
        if request.url not in (None, ENDPOINT):
            raise _invalid(f"{where}.url", f"expected '{ENDPOINT}', or leave it out")
        self._custom_ids.add(custom_id)
        if b"\n" in body:  # white space: in a string it would be no JSON
            body = body.replace(b"\n", b" ")
        written_id = msgspec.json.encode(custom_id)
        return b'{"custom_id":%b,"method":"POST","url":"%b","body":%b}\n' % (written_id, ENDPOINT.encode(), body)

    def finish(self) -> BatchRequest:
        """The other fields. Raises InvalidInput that names a field, also one for a custom_id that is repeated."""
        try:
            self._stream.finish()
        except Malformed:
            empty = "The body is not valid JSON: it is empty; send a JSON object."
            raise InvalidInput(NOT_JSON if self._has_bytes else empty, code="invalid_json") from None
        fields = self._stream.fields
        if any(msgspec.json.decode(key, type=str) == ARRAY for key in fields):
            raise _invalid(ARRAY, "expected an array", "invalid_type")
        body = b"{" + b",".join(b"%b:%b" % pair for pair in fields.items()) + b"}"
        try:
            request = decode(_FIELDS, body)
        except UnsupportedParameter:
            decode(_INLINE_FORM if self.has_requests else _FILE_FORM, body)  # whose error names what this form knows
            raise
        if self.has_requests:
            self._check_requests()
        return request

    def _check_requests(self) -> None:
        if not self._stream.items:
            raise InvalidInput(
                f"Invalid '{ARRAY}': the list is empty. Send at least one request.", param=ARRAY, code="empty_array"
            )
        again, first = self._custom_ids.repetitions()
        if len(again):
            where = f"{ARRAY}[{int(again[0])}].custom_id"
            raise InvalidInput(
                f"Invalid '{where}': {ARRAY}[{int(first[0])}] has the same custom_id. "
                "Send each request with an id of its own.",
                param=where,
                code="duplicate_custom_id",
            )


def _decode_request(item: bytes, where: str) -> InlineRequest:
    if len(item) > EXPLAINED_BYTES and has_endless_number(item):
        raise _invalid(where, "it holds a number of more than a thousand digits", "invalid_json")
    try:
        item.decode("utf-8")  # which is not asked of the body, as it is not decoded
        request = _REQUEST.decode(item)
    except msgspec.ValidationError as error:
        found = explain(error, InlineRequest)
        param = f"{where}.{found.param}" if found.param else where
        words = f"Invalid '{where}': expected an object with custom_id and body."
        if found.param:
            words = found.message.replace(f"'{found.param}'", f"'{param}'", 1)
        raise type(found)(words, param=param, code=found.code) from None
    except JSON_ERRORS:
        reason, _ = explain_line(item, "request")
        message = reason.message if reason.code == "invalid_json" else "the request is not valid JSON"
        raise _invalid(where, message, "invalid_json") from None
    if item.count(b'"custom_id"') > 1 or item.count(b'"body"') > 1 or ESCAPED_LETTER in item:
        _check_keys(item, where)
    return request


def _check_keys(item: bytes, where: str) -> None:
    names: set[str] = set()
    try:
        written = list(members(item))
    except DoubleKey as error:
        raise double_key_error(f"{where}.{error.key.decode('utf-8', 'replace').strip(chr(34))}") from None
    except Malformed:
        raise _invalid(where, "the request is not valid JSON", "invalid_json") from None
    for key in written:
        name = msgspec.json.decode(key, type=str)
        if name in names:
            raise double_key_error(f"{where}.{name}")
        names.add(name)


def _invalid(where: str, reason: str, code: str = "invalid_value") -> InvalidInput:
    return InvalidInput(f"Invalid '{where}': {reason}.", param=where, code=code)
