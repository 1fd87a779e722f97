"""Keys that an object of a JSON document has twice. A decoder keeps the last value, and says nothing of the others.

Counting quotes costs less than decoding: a document has two for each string and each key, so one that has as many
as its decoded value has no key twice. Only another is read a second time. Decision 21 has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

LARGE_BYTES = 2 * 1024  # from here on NumPy is faster
ESCAPED_LETTER = b"\\u00"  # a key may be spelled with it


def has_quotes(document: bytes, count: int) -> bool:
    """True when the document has so many quotes outside its strings. False also where that cannot be told quickly."""
    if len(document) < LARGE_BYTES:
        found = document.count(b'"')
        return found == count or (found - document.count(b'\\"') == count and b'\\\\"' not in document)
    data = np.frombuffer(document, dtype=np.uint8)
    quotes = data == ord('"')
    found = int(np.count_nonzero(quotes))
    if found == count:
        return True
    slashes = data == ord("\\")
    escaped = quotes[1:] & slashes[:-1]
    return found - int(np.count_nonzero(escaped)) == count and not (escaped[1:] & slashes[:-2]).any()


def quotes_in(value: Any) -> int:
    """The quotes of a decoded JSON value: two for each string, and for each key."""
    if isinstance(value, str):
        return 2
    if isinstance(value, dict):
        return 2 * len(value) + sum(map(quotes_in, value.values()))
    if isinstance(value, msgspec.Struct):
        return sum(
            2 + quotes_in(each) for name in value.__struct_fields__ if (each := getattr(value, name)) is not None
        )
    return sum(map(quotes_in, value)) if isinstance(value, list) else 0


def quotes_in_items(items: Sequence[Any]) -> int:
    """The quotes of a list of texts, numbers, token arrays and objects with a text."""
    kinds = set(map(type, items))
    if kinds == {str}:
        return 2 * len(items)
    if kinds <= {int, list}:
        return 0
    return sum(2 if isinstance(item, str) else 0 if isinstance(item, int | list) else _in_line(item) for item in items)


def _in_line(line: Any) -> int:
    """The quotes of an object with `text` and `id`, and no other fields."""
    return 2 + 2 * isinstance(line.text, str) + (0 if line.id is None else 2 + 2 * isinstance(line.id, str))


def line_double_key(line: bytes, decoded: Any) -> str | None:
    """`text` or `id`, where the line has it twice. Other fields of a line are ignored, however often it has them."""
    if has_quotes(line, _in_line(decoded)):
        return None
    if line.count(b'"text"') < 2 and line.count(b'"id"') < 2 and ESCAPED_LETTER not in line:
        return None
    found = double_key(line)
    return found if found in ("text", "id") else None


class _DoubleKeyObject(dict[str, Any]):
    def __init__(self, members: dict[str, Any], key: str) -> None:
        super().__init__(members)
        self.key = key


def double_key(document: bytes | str) -> str | None:
    """The path of the first key that an object of the document has twice, as `input[3].text`; None where none has."""
    try:
        value = json.loads(document, object_pairs_hook=_members, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return None  # whoever decodes it says what is wrong
    return _path_of(value)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            return _DoubleKeyObject(members, name)
        names.add(name)
    return members


def _path_of(value: Any) -> str | None:
    if isinstance(value, _DoubleKeyObject):
        return value.key
    named: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        named = value.items()
    elif isinstance(value, list):
        named = ((f"[{index}]", item) for index, item in enumerate(value))
    for name, item in named:
        if isinstance(item, dict | list) and (path := _path_of(item)) is not None:
            return f"{name}{path}" if isinstance(item, list) else f"{name}.{path}"
    return None
