"""Well-known models, so that a configuration needs only an account: `catalog.toml`, or the operator's newer table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import msgspec

import providers
from models.errors import ConfigError

BUILT_IN = Path(__file__).with_name("catalog.toml")
# In the data folder: what `embedmill models refresh` has stored.
REFRESHED = "models.toml"
MAX_USD_PER_MILLION = 1_000_000


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A price in USD per million input tokens, from a day on."""

    since: date
    usd: Decimal


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model at one kind of provider: its name there, what it costs, and limits that differ from the kind's."""

    kind: str
    model: str
    source: str
    usd: Decimal | None = None
    prices: list[Price] = []
    batch_usd: Decimal | None = None
    max_inputs_per_call: int | None = None
    max_tokens_per_call: int | None = None

    def price_on(self, day: date) -> Decimal:
        """USD per million input tokens on that day."""
        past = [price for price in self.prices if price.since <= day]
        return max(past, key=lambda price: price.since).usd if past else self.usd or Decimal(0)


class CatalogModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that embedmill knows without configuration. `dimensions`: the width that a call without one gets."""

    dimensions: int
    max_input_tokens: int
    served_by: list[Offer]
    allowed_dimensions: str | list[int] | None = None
    space: str | None = None
    tokenizer: str | None = None
    token_arrays: str | None = None  # the tokenizer by which they become text, or "refuse"
    narrowing: str | None = None
    interchangeable: bool = False
    retires: date | None = None

    def offer_of(self, kind: str) -> Offer | None:
        """The offer of a kind of provider."""
        return next((offer for offer in self.served_by if offer.kind == kind), None)


class TextTemplates(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a text becomes before it is embedded, by input_type, for models whose names match a pattern."""

    models: list[str]
    instead_of_field: bool = False
    query: str | None = None
    document: str | None = None
    classification: str | None = None
    clustering: str | None = None
    similarity: str | None = None
    code_query: str | None = None

    def by_type(self) -> dict[str, str]:
        """Templates by input_type, without those that it has none for."""
        names = ("query", "document", "classification", "clustering", "similarity", "code_query")
        return {name: template for name in names if (template := getattr(self, name)) is not None}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: dict[str, CatalogModel] = {}
    templates: list[TextTemplates] = []


@dataclass(frozen=True, slots=True)
class Catalog:
    """All well-known models by name, and templates by patterns."""

    models: Mapping[str, CatalogModel]
    templates: tuple[TextTemplates, ...]

    def templates_of(self, upstream_model: str) -> TextTemplates | None:
        """The first templates whose pattern matches the model's name without its owner."""
        name = upstream_model.lower().rpartition("/")[2]
        for templates in self.templates:
            if any(fnmatchcase(name, pattern) for pattern in templates.models):
                return templates
        return None


def load_catalog(data_dir: Path | None = None) -> Catalog:
    """The built-in catalog, with the operator's newer table in front. Raises ConfigError."""
    built_in = _built_in()
    newer = data_dir / REFRESHED if data_dir is not None else None
    if newer is None or not newer.is_file():
        return built_in
    file = read_catalog(newer)
    return Catalog({**built_in.models, **file.models}, (*file.templates, *built_in.templates))


def read_catalog(path: Path) -> Catalog:
    """Read one table of models. Raises ConfigError that says what is wrong and where."""
    try:
        file = msgspec.convert(tomllib.loads(path.read_text("utf-8")), _File)
    except OSError as error:
        raise ConfigError(f"the table of models {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"the table of models {path} cannot be used: {error}") from error
    if not file.models and not file.templates:
        raise ConfigError(f"the table of models {path} is empty")
    for name, model in file.models.items():
        if model.dimensions < 1 or model.max_input_tokens < 1 or not model.served_by:
            raise ConfigError(f"{path}: models.{name} needs dimensions, max_input_tokens and served_by")
        for offer in model.served_by:
            _check_offer(offer, f"{path}: models.{name}")
    return Catalog(file.models, tuple(file.templates))


def _check_offer(offer: Offer, where: str) -> None:
    if offer.kind not in providers.PROVIDERS:
        raise ConfigError(f"{where}: {offer.kind!r} is no kind of provider; `embedmill providers` lists them")
    for price in (offer.usd, offer.batch_usd, *(each.usd for each in offer.prices)):
        if price is not None and (not price.is_finite() or not 0 <= price <= MAX_USD_PER_MILLION):
            raise ConfigError(f"{where}: the price {price} of {offer.kind} must be from 0 to {MAX_USD_PER_MILLION}")


@lru_cache(maxsize=1)
def _built_in() -> Catalog:
    return read_catalog(BUILT_IN)
