"""Schema of embedmill.toml: the keys of each section, with their defaults."""

from __future__ import annotations

from typing import Any

import msgspec


class AccountSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[providers.<name>]`: an account at a provider."""

    kind: str
    base_url: str | None = None
    api_key: str | None = None
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


class ModelSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[models.<alias>]`: a public model name and its vectors."""

    routes: list[RouteSection]
    dimensions: int | None = None
    allowed_dimensions: str | list[int] | None = None
    max_input_tokens: int | None = None
    space: str | None = None
    input_usd_per_million_tokens: str | float | int | None = None
