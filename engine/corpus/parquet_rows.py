"""Columns of Parquet, a batch of rows at a time: whatever type holds text is read as text, and no other type is.

Needs pyarrow, an optional package: import this module where it is used.
"""

from __future__ import annotations

import base64
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import types
from pyarrow.parquet import ParquetFile

BATCH_ROWS = 1024


def open_file(raw: BinaryIO, **options: Any) -> Any:
    """The opened Parquet file. Where its pages have checksums, they are checked, so that no other text is read."""
    return ParquetFile(raw, page_checksum_verification=True, **options)


def stored(kind: Any) -> Any:
    """The type that values of an extension or a dictionary are stored in."""
    if isinstance(kind, pa.BaseExtensionType):
        return stored(kind.storage_type)
    return stored(kind.value_type) if types.is_dictionary(kind) else kind


def holds_text(kind: Any) -> bool:
    """True for strings and for bytes, which are text where they are UTF-8; each layout and each dictionary of them."""
    kind = stored(kind)
    return any(
        is_kind(kind)
        for is_kind in (
            types.is_string,
            types.is_large_string,
            types.is_string_view,
            types.is_binary,
            types.is_large_binary,
            types.is_binary_view,
        )
    )


def values_of(column: Any) -> list[Any]:
    """The cells as Python values; strings as bytes where one of them is no UTF-8; instants as Arrow writes them."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_temporal(column.type):
        column = column.cast(pa.string())  # Python's own have no nanoseconds
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
    return values


def as_text(value: Any) -> str | None:
    """The text of a cell; bytes that are no UTF-8 survive, for the server to refuse."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def as_id(value: Any) -> str | None:
    """The exact value of a cell as a string."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return base64.b16encode(value).decode().lower()
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
