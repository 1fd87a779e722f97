"""Schema of embedmill.toml: the keys of each section with their defaults, and how a section is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import msgspec

from models.embedding import Strategy
from models.errors import ConfigError


class AccountSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[providers.<name>]`: an account at a provider."""

    kind: str
    base_url: str | None = None
    api_key: str | None = None
    api_keys: list[str] = []  # several, each with quotas of its own
    key_use: Literal["in-order", "spread"] = "in-order"
    max_concurrency: int | None = None
    timeout_s: float = 60.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expect_model: bool | str | None = None
    allow_zero_vectors: bool = False
    drift_probe: str | None = None
    proxy: str | None = None
    encoding: str = "base64"
    allowed_options: list[str] | None = None
    headers: dict[str, str] = {}  # sent with each call; a secret is env:NAME or file:PATH
    strip_headers: list[str] = []  # of ours, not sent
    body: dict[str, Any] = {}  # fields of each call that nothing else sets
    renames: dict[str, str] = {}  # our name of a field of the body → the server's
    ca_file: str | None = None  # certificates that are trusted for this account, PEM
    # Only for kind = "fake": scripted faults and latency, and what its upstream insists on.
    script: list[dict[str, Any]] = []
    latency_ms: float = 0.0


class RouteSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[[models.<alias>.routes]]`: one way to serve the alias."""

    provider: str
    model: str | None = None
    weight: int = 1
    priority: int = 0
    narrowing: str | None = None
    input_usd_per_million_tokens: str | float | int | None = None
    max_inputs_per_call: int | None = None
    max_tokens_per_call: int | None = None
    max_tokens_per_input: int | None = None
    max_bytes_per_call: int | None = None
    expect_model: bool | str | None = None
    tokenizer: str | None = None
    query_template: str | None = None
    document_template: str | None = None


class ModelSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[models.<alias>]`: a public model name and its vectors."""

    routes: list[RouteSection]
    dimensions: int | None = None
    allowed_dimensions: str | list[int] | None = None
    max_input_tokens: int | None = None
    space: str | None = None
    input_usd_per_million_tokens: str | float | int | None = None
    strategy: Strategy = "weighted"
    verify_spaces: bool = True
    hedge: bool = False
    token_arrays: str | None = None
    normalize: bool = False
    query_template: str | None = None
    document_template: str | None = None


Section = TypeVar("Section", bound=msgspec.Struct)


def table(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The table of this name; empty where there is none. Raises ConfigError."""
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table: [{name}.<name>]", param=name)
    return value


def read_section(value: Any, kind: type[Section], where: str, more_keys: Iterable[str] = ()) -> Section:
    """A table as a section; `more_keys` are allowed in it and left out. Raises ConfigError that names the key."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table", param=where)
    more_keys = set(more_keys)
    check_keys(value, [*kind.__struct_fields__, *more_keys], where)
    for i, route in enumerate(value.get("routes") or []):
        if isinstance(route, dict):
            check_keys(route, RouteSection.__struct_fields__, f"{where}.routes[{i}]")
    try:
        return msgspec.convert({name: each for name, each in value.items() if name not in more_keys}, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}", param=where) from error


def check_keys(table: dict[str, Any], valid: Iterable[str], where: str) -> None:
    """Raise ConfigError for a key that there is not, with the nearest one that there is."""
    for key in table:
        if key not in valid:
            name = f"{where}.{key}" if where else key
            raise ConfigError(f"unknown key {name}{did_you_mean(key, valid)}", param=name)


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """The nearest of the valid words, or all of them, as the end of a message."""
    names = list(valid)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(names))}"
