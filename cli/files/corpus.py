"""A corpus on disk or on a pipe, read as the lines that the server takes. Memory stays flat whatever its size.

One record of the file is one line sent, good or bad: the server answers a bad one with an error of that index, so an
index always means the same record on both sides. A file that cannot be read for certain is refused as a whole.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cli.errors import CliError
from cli.files.columns import Columns
from cli.files.source import Source

_encode = msgspec.json.encode


class Corpus(ABC):
    """A file of texts. `lines()` may be called again, to send the same body once more."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = Path(source.name).name

    @property
    def notes(self) -> list[str]:
        """Notes for the user about how the file is read."""
        return self.source.notes

    @abstractmethod
    def lines(self) -> Iterator[bytes]:
        """Each record as one line of JSON, with its line feed, in the file's order. Blank records at the end are none.

        Raises UsageError or CliError that names the line, where a record cannot be read for certain.
        """

    def fraction_read(self) -> float:
        """How much of the file the latest `lines()` has read, from 0 to 1."""
        return self.source.fraction_read()


def row_line(row: dict[str, Any], columns: Columns) -> bytes:
    """A record as the server's line: its text as it is, its id as a string."""
    text, row_id = row.get(columns.text), row.get(columns.id) if columns.id else None
    if row_id is None or row_id == "":
        return b'{"text":' + json_line(text) + b"}\n"
    name = row_id if isinstance(row_id, str) else json_line(row_id).decode("utf-8", "surrogateescape")
    return b'{"id":' + json_line(name) + b',"text":' + json_line(text) + b"}\n"


def json_line(value: Any) -> bytes:
    """A value as JSON. Bytes that were no UTF-8 go out as they came in: the server refuses this one input."""
    try:
        return _encode(value)
    except (UnicodeEncodeError, OverflowError):
        pass
    if isinstance(value, str):
        try:
            escaped: bytes = _encode(value.encode("utf-8", "surrogateescape").decode("latin-1"))
            return escaped.decode("utf-8").encode("latin-1")
        except UnicodeEncodeError:
            pass
    return json.dumps(value).encode()  # half a surrogate pair: the server refuses this input


def no_texts(source: Source) -> CliError:
    """The error for a corpus without a record."""
    return CliError(f"{source.name} holds no texts", "is it the right file?")
