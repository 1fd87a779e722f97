"""Content-Disposition of a download: the name is what a caller once sent, so it may be anything (RFC 6266)."""

from __future__ import annotations

import re
from urllib.parse import quote

# What a quoted string may hold, without what browsers take for a part of a path or an escape.
_UNSAFE = re.compile(r"[^ !#$&-.0-9:;=?@A-Z\[\]^_`a-z{|}~]|%")
_SEPARATORS = re.compile(r"[/\\]")
MAX_NAME_CHARS = 200


def attachment(filename: str) -> str:
    """The header's value: an ASCII name for all clients, and the name in UTF-8 where it has other characters."""
    name = _SEPARATORS.sub("_", filename)[-MAX_NAME_CHARS:].strip(". ") or "file"
    plain = _UNSAFE.sub("_", name)
    value = f'attachment; filename="{plain}"'
    if plain != name:
        printable = "".join(character if character.isprintable() else "_" for character in name)
        value += f"; filename*=UTF-8''{quote(printable, safe='')}"
    return value
