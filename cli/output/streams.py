"""Makes stdout and stderr take every character: one that a console cannot show never ends a command."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import BinaryIO

from cli.errors import CliError

ASCII_FORMS = {"→": "->", "×": "x", "…": "...", "·": "-", "–": "-", "—": "-", "•": "*", "±": "+/-", "’": "'", "━": "-"}
BOXES = range(0x2500, 0x2580)
SPINNERS = range(0x2800, 0x2900)
_closed_streams: set[str] = set()


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """An error handler for codecs: decoration in ASCII, other characters as JSON and Python escape them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_escape, error.object[error.start : error.end])), error.end


def _escape(char: str) -> str:
    if char in ASCII_FORMS:
        return ASCII_FORMS[char]
    if ord(char) in BOXES:
        return "|" if char in "│┃║" else "-"
    if ord(char) in SPINNERS:
        return "*"
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[offset : offset + 2].hex()}" for offset in range(0, len(units), 2))


def prepare_streams() -> None:
    """Make both streams take every character, and stand in for those that the shell has closed."""
    codecs.register_error("embedmill.plain", escape_unencodable)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            _closed_streams.add(name)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123  # for our life
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="embedmill.plain")


def data_stream() -> BinaryIO:
    """stdout for bytes. Raises CliError when the shell has closed it: the output would be lost."""
    if "stdout" in _closed_streams:
        raise CliError("stdout is closed", "name a file with --out")
    return sys.stdout.buffer


def discard_output(stream_name: str) -> None:
    """Redirect a stream without a reader to the null device, so that Python's flush at exit does not fail."""
    handle = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(handle, {"stdout": 1, "stderr": 2}[stream_name])
    finally:
        os.close(handle)
