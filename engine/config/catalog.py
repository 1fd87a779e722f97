"""Well-known models, so that a configuration needs only an account. Prices move: each row says its source and date."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that embedmill knows without configuration: width, limits and price."""

    kind: str
    upstream_model: str
    width: int
    allowed: frozenset[int] | range
    max_input_tokens: int
    space: str
    usd_per_million_tokens: Decimal
    source: str
    narrowing: str = "native"
    tokenizer: str | None = None


def _openai(model: str, width: int, price: str, *, fixed: bool = False) -> CatalogModel:
    return CatalogModel(
        kind="openai",
        upstream_model=model,
        width=width,
        allowed=frozenset({width}) if fixed else range(1, width + 1),
        max_input_tokens=8192,
        space=f"openai/{model}",
        usd_per_million_tokens=Decimal(price),
        source="public price maps, 2026-11",
        tokenizer="cl100k",
    )


CATALOG: dict[str, CatalogModel] = {
    "openai/text-embedding-3-small": _openai("text-embedding-3-small", 1536, "0.02"),
    "openai/text-embedding-3-large": _openai("text-embedding-3-large", 3072, "0.13"),
    "openai/text-embedding-ada-002": _openai("text-embedding-ada-002", 1536, "0.10", fixed=True),
    "local/wordllama-256": CatalogModel(
        kind="local",
        upstream_model="wordllama-256",
        width=256,
        allowed=frozenset({64, 128, 256}),  # the widths that the model was trained to be cut at
        max_input_tokens=8192,
        space="local/wordllama-256",
        usd_per_million_tokens=Decimal(0),
        source="runs here, on the operator's own machine",
        narrowing="cut",
    ),
    "fake/embedding-1536": CatalogModel(
        kind="fake",
        upstream_model="fake-embedding",
        width=1536,
        allowed=range(1, 1537),
        max_input_tokens=8192,
        space="fake/embedding-1536",
        usd_per_million_tokens=Decimal("0.02"),
        source="none: a price to test sums with",
    ),
}
