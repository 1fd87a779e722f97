"""The `input` array of a large JSON body as lines of a corpus: decoded a piece at a time, never whole."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.corpus import json_spans
from engine.corpus.double_keys import double_key, has_quotes, quotes_in_items
from engine.corpus.lines import ParsedRecords, TextLine, append_record, explain_line
from models.embedding import InputError
from models.errors import InvalidInput

_ITEMS = msgspec.json.Decoder(list[str | list[int] | TextLine])
_NUMBERS = msgspec.json.Decoder(list[int])
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_items(document: bytes, start: int, stop: int, *, max_item_bytes: int) -> Iterator[ParsedRecords]:
    """The items of the array, as lines, some hundred kilobytes at a time.

    An item that is no JSON in itself is that index's error. Raises InvalidInput for one that is JSON and no input.
    """
    index = 0
    for low, high, count in json_spans.items(document, start, stop):
        lines = ParsedRecords()
        piece = document[low:high]
        if count == 1 and len(piece) > max_item_bytes:
            lines.append_error(InputError("input_too_long", f"the item is longer than {max_item_bytes} bytes"))
        else:
            try:
                values = _ITEMS.decode(b"[" + piece + b"]")
            except _NOT_JSON:
                lines = _one_by_one(piece, index)
            else:
                if not has_quotes(piece, quotes_in_items(values)):
                    _check_keys(piece, index)
                for value in values:
                    append_record(value, lines)
        yield lines
        index += count


def _check_keys(piece: bytes, first_index: int) -> None:
    """Raises InvalidInput for an item that has a key twice."""
    if (path := double_key(b"[" + piece + b"]")) is not None:
        position, _, key = path.removeprefix("[").partition("].")
        where = f"input[{first_index + int(position)}].{key}"
        raise InvalidInput(f"The key '{where}' occurs twice: send it once.", param=where, code="duplicate_key")


def _one_by_one(piece: bytes, first_index: int) -> ParsedRecords:
    lines = ParsedRecords()
    array = b"[" + piece + b"]"
    for position, (low, high, _) in enumerate(json_spans.items(array, 0, len(array), piece_bytes=1)):
        item = array[low:high].strip()
        try:
            (value,) = _ITEMS.decode(b"[" + item + b"]")
        except _NOT_JSON:
            error, caller_id = explain_line(item, "item")
            if error.code != "invalid_json":
                where = f"input[{first_index + position}]"
                raise InvalidInput(f"Invalid '{where}': {error.message}.", param=where, code="invalid_type") from None
            lines.append_error(error, caller_id)
        else:
            _check_keys(item, first_index + position)
            append_record(value, lines)
    return lines


def read_numbers(document: bytes, start: int, stop: int, *, limit: int) -> list[int]:
    """A token array, of which no more is decoded than shows that it is longer than `limit`. Raises ValueError."""
    numbers: list[int] = []
    for low, high, _ in json_spans.items(document, start, stop, piece_bytes=16 * 1024):
        try:
            numbers += _NUMBERS.decode(b"[" + document[low:high] + b"]")
        except _NOT_JSON as error:
            raise ValueError("not an array of token ids") from error
        if len(numbers) > limit:
            break
    return numbers
