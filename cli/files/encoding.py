"""Detects the encoding of a text file: by its byte order mark, by zero bytes, or as the user states it."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from dataclasses import dataclass

from cli.errors import UsageError

# The longer marks first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE_BYTES = 16 * 1024
# The share of characters whose upper byte is zero, above which a text is taken for UTF-16 or UTF-32 without a mark.
ZERO_SHARE = 0.25
ISO_2022 = re.compile(rb"\x1b(\$[@ABC]|\([BJ])")


@dataclass(frozen=True, slots=True)
class Encoding:
    """A codec that Python knows, and the size of the byte order mark before the text."""

    name: str
    mark_bytes: int = 0
    errors: str = "strict"
    note: str = ""

    def decode_error(self, where: str, line: int) -> UsageError:
        """The error for a line that is not in this encoding."""
        if self.name == "utf-8":
            return UsageError(
                f"{where}: line {line:,} is not UTF-8",
                "give its --encoding, e.g. cp1252 or latin-1; with --encoding utf-8 such lines become input errors",
            )
        return UsageError(f"{where}: line {line:,} is not {self.name}", "is --encoding right, and the file whole?")


def find_encoding(head: bytes, requested: str | None, where: str) -> Encoding:
    """Encoding of a text that begins with `head`. Raises UsageError when it is unknown or differs from `requested`.

    With UTF-8 as `requested`, bad bytes become errors of their lines; without it they refuse the file.
    """
    mark, marked = next(((mark, name) for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), (b"", ""))
    if requested is not None:
        name = _codec_name(requested)
        if marked and name not in (marked, marked.removesuffix("-le").removesuffix("-be")):
            raise UsageError(
                f"{where} begins with the mark of {marked}, not of {requested}", f"leave out --encoding {requested}"
            )
        return Encoding(marked or name, len(mark), "surrogateescape" if name == "utf-8" else "strict")
    if marked:
        note = f"{where} is read as {marked.upper()}, by its byte order mark" if marked != "utf-8" else ""
        return Encoding(marked, len(mark), note=note)
    if name := _detect_by_zero_bytes(head[:SAMPLE_BYTES]):
        return Encoding(name, note=f"{where} is read as {name.upper()}, by its zero bytes")
    if b"\0" in head:
        line = head.count(b"\n", 0, head.index(b"\0")) + 1
        raise UsageError(
            f"{where}: line {line:,} holds a NUL, so the file is no text, or not UTF-8",
            "give its --encoding, e.g. utf-16-le",
        )
    if ISO_2022.search(head):
        raise UsageError(f"{where} holds escape sequences of ISO-2022", "give its --encoding, e.g. iso2022_jp")
    return Encoding("utf-8")


def _codec_name(requested: str) -> str:
    try:
        codec = codecs.lookup(requested)
        with suppress(UnicodeError):
            b"text".decode(requested)  # a LookupError for codecs that are no text encodings, such as rot13
    except LookupError as error:
        raise UsageError(
            f"no encoding is called {requested!r}", "e.g. utf-8, utf-16, cp1252, latin-1, gb18030, shift_jis"
        ) from error
    return codec.name.removesuffix("-sig")


def _detect_by_zero_bytes(sample: bytes) -> str:
    """UTF-16 or UTF-32 in either order, where upper bytes are zero as often as in no other text; "" elsewhere."""
    for width, names in ((4, ("utf-32-le", "utf-32-be")), (2, ("utf-16-le", "utf-16-be"))):
        units = len(sample) // width
        if not units:
            continue
        zeros = [sample[offset : units * width : width].count(0) for offset in range(width)]
        low, high = zeros[: width // 2], zeros[width // 2 :]
        share = 0.9 if width == 4 else ZERO_SHARE
        if min(high) >= share * units and low[0] * 10 <= min(high) and _decodes(sample[: units * width], names[0]):
            return names[0]
        if min(low) >= share * units and high[-1] * 10 <= min(low) and _decodes(sample[: units * width], names[1]):
            return names[1]
    return ""


def _decodes(sample: bytes, name: str) -> bool:
    try:
        codecs.getincrementaldecoder(name)().decode(sample)
    except UnicodeDecodeError:
        return False
    return True
