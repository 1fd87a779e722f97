"""Validates names and secrets from configuration before they are stored or sent, and redacts secrets in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from models.embedding import Alias
from models.errors import ConfigError

# The widths of their columns (models/): PostgreSQL would refuse a longer name only after a paid call.
MAX_ACCOUNT_CHARS = 64
MAX_PROJECT_CHARS = 64
MAX_NOTE_CHARS = 128
MAX_MODEL_CHARS = 256

_SECRETS = re.compile(
    r"em_[0-9A-Za-z]{4,}_?\w*|\b[sr]k-[\w-]{8,}|(?<=://)[^/@\s'\"]+(?=@)"
    # A quotation or a clause that closes behind a credential is no part of it. `<key>` is a placeholder in a help text.
    r"|(?i:(?<=bearer )|(?<=basic )|(?<=key=))(?:<[^\s<>]+>|[^\s'\"&]*[^\s'\"&`)\]}>,;.:!?])"
)


def check_name(value: str, where: str, *, max_chars: int) -> str:
    """Return the name. Raises ConfigError for one that is empty, too long, or has characters that are not printable."""
    where = "".join(character if character.isprintable() else "?" for character in where)
    if not value or value != value.strip():
        raise ConfigError(f"{where}: the name must not be empty, nor begin or end with a space", param=where)
    if len(value) > max_chars:
        raise ConfigError(
            f"{where}: the name has {len(value)} characters; it may have {max_chars} at the most", param=where
        )
    if not value.isprintable() or "|" in value:
        raise ConfigError(f"{where}: the name must have no control characters and no '|'", param=where)
    return value


def check_names(accounts: Iterable[str], aliases: Mapping[str, Alias]) -> None:
    """Check that all names fit their columns. Raises ConfigError."""
    for name in accounts:
        check_name(name, f"providers.{name[:80]}", max_chars=MAX_ACCOUNT_CHARS)
    for name, alias in aliases.items():
        where = f"models.{name[:80]}"
        check_name(name, where, max_chars=MAX_MODEL_CHARS)
        check_name(alias.space, f"{where}.space", max_chars=MAX_MODEL_CHARS)
        for i, route in enumerate(alias.routes):
            check_name(route.upstream_model, f"{where}.routes[{i}].model", max_chars=MAX_MODEL_CHARS)


def check_secret(value: str, where: str) -> str:
    """Return the secret without surrounding white space. Raises ConfigError, which does not quote it."""
    value = value.strip()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"{where} holds a character that no key has: copy it anew, without line ends", param=where)
    return value


def redacted(text: str) -> str:
    """A library's message without credentials: our keys, bearer tokens, passwords in URLs."""
    return _SECRETS.sub("***", text)
