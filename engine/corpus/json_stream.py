"""An object that arrives as a stream, and holds one long array: its items come out one by one, its other values whole.

Nothing is decoded here; only brackets, commas and colons outside strings are found. Keys come in any order.
"""

from __future__ import annotations

import json
from enum import Enum, auto

import numpy as np

from engine.corpus.json_spans import MAX_MEMBERS, DoubleKey, Malformed, StructureScanner

_OPEN_ARRAY, _CLOSE_ARRAY, _OPEN_OBJECT, _CLOSE_OBJECT, _COMMA, _COLON = b"[]{},:"
_SPACE = b" \t\r\n"


class ValueTooLong(ValueError):
    """An item of the array, or another value, is longer than is kept. `item`: its position; None: `key` is too long."""

    def __init__(self, item: int | None, key: str) -> None:
        super().__init__("a value is too long")
        self.item = item
        self.key = key


class _Place(Enum):
    """What the next bytes are part of."""

    START = auto()  # white space before the object
    KEY = auto()
    VALUE = auto()
    ITEMS = auto()  # an item of the array
    AFTER = auto()  # white space behind the array
    END = auto()  # white space behind the object


class ObjectStream:
    """Feed it the document in pieces. `fields`: each other key as it is written, with its quotes, and its value."""

    def __init__(self, array: str, *, max_item_bytes: int, max_field_bytes: int) -> None:
        self._array = array
        self._max_item_bytes = max_item_bytes
        self._max_field_bytes = max_field_bytes
        self._scanner = StructureScanner()
        self._place = _Place.START
        self._rest = bytearray()  # of the value that is not complete
        self._key = ""
        self._written_key = b""
        self._names: set[str] = set()
        self.fields: dict[bytes, bytes] = {}
        self.items = 0  # that came out
        self.has_array = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the incomplete value that are kept."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The items that this chunk completes. Raises Malformed, DoubleKey, ValueTooLong."""
        positions, characters, depths = self._scanner.feed(np.frombuffer(chunk, dtype=np.uint8))
        shallow = (depths <= 1) | ((depths == 2) & ((characters == _COMMA) | (characters == _OPEN_ARRAY)))
        items: list[bytes] = []
        begin = 0
        for at in np.flatnonzero(shallow).tolist():
            position, character, depth = int(positions[at]), int(characters[at]), int(depths[at])
            if self._place is _Place.ITEMS:
                if depth == 2 and character == _COMMA:
                    items.append(self._item(chunk[begin:position]))
                elif depth == 1 and character == _CLOSE_ARRAY:
                    self._end_array(chunk[begin:position], items)
                else:
                    raise Malformed("brackets do not match")
            elif not self._is_boundary(chunk[begin:position], character, depth):
                continue
            begin = position + 1
        self._keep(chunk[begin:])
        return items

    def finish(self) -> None:
        """Raises Malformed when the document has not ended."""
        if self._place is not _Place.END:
            raise Malformed("the document has no end")

    def _is_boundary(self, piece: bytes, character: int, depth: int) -> bool:
        """Whether this character ends the key or value whose last bytes are `piece`, or begins the array."""
        place = self._place
        if place is _Place.VALUE:
            return self._is_end_of_value(piece, character, depth)
        if place is _Place.KEY and character == _COLON and depth == 1:
            self._set_key(self._take(piece))
            return True
        if self._take(piece):
            raise Malformed("text is where none can be")
        if place is _Place.START:
            is_key_next = character == _OPEN_OBJECT
        else:
            is_key_next = place is _Place.AFTER and character == _COMMA and depth == 1
        if is_key_next:
            self._place = _Place.KEY
        elif character == _CLOSE_OBJECT and depth == 0 and (place is _Place.AFTER or not self._names):
            self._place = _Place.END
        else:
            raise Malformed("brackets, colons or commas do not match")
        return True

    def _is_end_of_value(self, piece: bytes, character: int, depth: int) -> bool:
        if depth == 2:
            if character == _OPEN_ARRAY and self._key == self._array and not (bytes(self._rest) + piece).strip(_SPACE):
                self._rest.clear()
                self._place, self.has_array = _Place.ITEMS, True
                return True
            return False
        if depth == 1 and character in (_CLOSE_ARRAY, _CLOSE_OBJECT):
            return False
        if (depth, character) not in ((1, _COMMA), (0, _CLOSE_OBJECT)):
            raise Malformed("brackets, colons or commas do not match")
        value = self._take(piece)
        if not value:
            raise Malformed("a key has no value")
        if len(value) > self._max_field_bytes:
            raise ValueTooLong(None, self._key)
        self.fields[self._written_key] = value
        self._place = _Place.END if depth == 0 else _Place.KEY
        return True

    def _set_key(self, written: bytes) -> None:
        try:
            name = json.loads(written)
        except ValueError:
            raise Malformed("a key is no string") from None
        if not isinstance(name, str):
            raise Malformed("a key is no string")
        if name in self._names:
            raise DoubleKey(written)
        if len(self._names) == MAX_MEMBERS:
            raise Malformed("the object has too many members")
        self._names.add(name)
        self._key, self._written_key, self._place = name, written, _Place.VALUE

    def _end_array(self, piece: bytes, items: list[bytes]) -> None:
        if self.items or (bytes(self._rest) + piece).strip(_SPACE):
            items.append(self._item(piece))
        self._rest.clear()
        self._place = _Place.AFTER

    def _item(self, piece: bytes) -> bytes:
        item = self._take(piece)
        if not item:
            raise Malformed("an item of the array is missing")
        if len(item) > self._max_item_bytes:
            raise ValueTooLong(self.items, self._key)
        self.items += 1
        return item

    def _take(self, piece: bytes) -> bytes:
        value = (bytes(self._rest) + piece if self._rest else piece).strip(_SPACE)
        self._rest.clear()
        return value

    def _keep(self, piece: bytes) -> None:
        if self._place in (_Place.START, _Place.AFTER, _Place.END) or not self._rest:
            piece = piece.lstrip(_SPACE)
            if piece and self._place in (_Place.START, _Place.AFTER, _Place.END):
                raise Malformed("text is where none can be")
        self._rest += piece
        is_item = self._place is _Place.ITEMS
        if len(self._rest) > (self._max_item_bytes if is_item else self._max_field_bytes):
            raise ValueTooLong(self.items if is_item else None, self._key)
