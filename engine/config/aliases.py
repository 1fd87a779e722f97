"""Models from the configuration: each public name with its routes, limits, widths and prices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

import providers
from engine.config.catalog import Catalog, CatalogModel, Offer
from engine.config.sections import ModelSection, RouteSection, did_you_mean, read_section
from engine.limiter import quota
from engine.planning import vocabularies
from engine.planning.tokens import CL100K
from models.embedding import Account, Alias, Limits, Route
from models.errors import ConfigError
from providers.local import WIDTHS
from providers.traits import Traits

TEXT = "{text}"
REFUSE = "refuse"
DEFAULT_MAX_INPUT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class _Model:
    """What all routes of a model share."""

    name: str
    section: ModelSection
    known: CatalogModel | None
    width: int
    max_input_tokens: int
    price: Decimal | None  # None: that of the offer that a route uses
    token_arrays: str | None  # the tokenizer by which they become text, or REFUSE; None: the default


def build_alias(name: str, value: Any, accounts: Mapping[str, Account], catalog: Catalog) -> Alias:
    """The model of a section [models.<name>]. Raises ConfigError that names the key."""
    where = f"models.{name}"
    section = value if isinstance(value, ModelSection) else read_section(value, ModelSection, where)
    if not section.routes:
        raise ConfigError(f"{where} has no [[{where}.routes]]", param=f"{where}.routes")
    known = catalog.models.get(name) or _known_by_route(section.routes[0], accounts, catalog)
    width = section.dimensions or (known.dimensions if known else 0)
    if width < 1:
        raise ConfigError(f"{where}.dimensions (the native width) is missing", param=f"{where}.dimensions")
    token_arrays = section.token_arrays
    if token_arrays is None and known is not None:
        token_arrays = known.token_arrays
    if token_arrays not in (None, REFUSE):
        vocabularies.load(token_arrays, f"{where}.token_arrays")
    model = _Model(
        name,
        section,
        known,
        width,
        section.max_input_tokens or (known.max_input_tokens if known else DEFAULT_MAX_INPUT_TOKENS),
        _price(section.input_usd_per_million_tokens, f"{where}.input_usd_per_million_tokens"),
        token_arrays,
    )
    # A section with several keys is an account, and so a route, for each: in their order, or side by side.
    ranks = 1 + max((account.key_rank for account in accounts.values()), default=0)
    routes = tuple(
        _route(route, f"{where}.routes[{i}]", account, route.priority * ranks + account.key_rank, model, catalog)
        for i, route in enumerate(section.routes)
        for account in _accounts_of(route, f"{where}.routes[{i}]", accounts)
    )
    space = section.space or (known.space if known and name in catalog.models else None) or name
    allowed = _allowed(section, known, width, where)
    price = routes[0].usd_per_million_tokens if model.price is None else model.price
    return Alias(
        name,
        width,
        allowed,
        model.max_input_tokens,
        space,
        routes,
        price,
        strategy=section.strategy,
        verify_spaces=section.verify_spaces,
        hedge=section.hedge,
    )


def sections_of_catalog(accounts: Mapping[str, Account], catalog: Catalog) -> dict[str, ModelSection]:
    """Sections for the well-known models that the accounts serve without further configuration."""
    sections: dict[str, ModelSection] = {}
    for name, known in catalog.models.items():
        routes = [
            RouteSection(account.name, model=offer.model, priority=priority)
            for priority, offer in enumerate(known.served_by)
            for account in accounts.values()
            if account.kind == offer.kind and _is_vendors_own(account) and account.name == account.section
        ]
        if routes:
            first = routes[0].priority
            same = routes if known.interchangeable else [route for route in routes if route.priority == first]
            sections[name] = ModelSection(same)
    return sections


def _accounts_of(route: RouteSection, where: str, accounts: Mapping[str, Account]) -> list[Account]:
    found = [account for account in accounts.values() if account.section == route.provider]
    if not found:
        names = {account.section for account in accounts.values()}
        raise ConfigError(
            f"{where}.provider = {route.provider!r} is not an account{did_you_mean(route.provider, names)}",
            param=f"{where}.provider",
        )
    return found


def _is_vendors_own(account: Account) -> bool:
    # With another base URL it is a compatible server with models of its own, unless its name is the vendor's.
    traits = providers.PROVIDERS[account.kind].traits
    return (
        account.base_url in (traits.base_url, *traits.base_url_of_key.values())
        or "{" in traits.base_url
        or account.name == account.kind
        or account.base_url.startswith("inproc://")
    )


def _known_by_route(route: RouteSection, accounts: Mapping[str, Account], catalog: Catalog) -> CatalogModel | None:
    """The well-known model that the route's account sells under the route's name."""
    account = accounts.get(route.provider)
    if account is None or not _is_vendors_own(account):
        return None
    for known in catalog.models.values():
        offer = known.offer_of(account.kind)
        if offer is not None and offer.model == route.model:
            return known
    return None


def _allowed(section: ModelSection, known: CatalogModel | None, width: int, where: str) -> frozenset[int] | range:
    """The widths that callers may ask for."""
    if section.allowed_dimensions is not None:
        return _dimensions(section.allowed_dimensions, width, where)
    if known is not None and known.allowed_dimensions is not None and section.dimensions in (None, known.dimensions):
        # A vendor's default may be less than the widest that it gives.
        return (
            _dimensions(known.allowed_dimensions, None, where)
            if known.narrowing != "cut"
            else _dimensions(known.allowed_dimensions, width, where)
        )
    return frozenset({width})


def _route(
    section: RouteSection, where: str, account: Account, priority: int, model: _Model, catalog: Catalog
) -> Route:
    if section.tokenizer not in (None, CL100K):
        raise ConfigError(f'{where}.tokenizer must be "{CL100K}", or left out', param=f"{where}.tokenizer")
    if section.narrowing not in (None, "native", "cut"):
        raise ConfigError(f'{where}.narrowing must be "native" or "cut"', param=f"{where}.narrowing")
    known = model.known
    offer = known.offer_of(account.kind) if known else None
    upstream_model = section.model or (offer.model if offer else model.name)
    traits = providers.PROVIDERS[account.kind].traits_of(upstream_model)
    if account.kind == "local":
        _check_local(section, where, model.name, model.width, upstream_model)
    price = _price(section.input_usd_per_million_tokens, f"{where}.input_usd_per_million_tokens")
    if price is None:
        price = model.price
    if price is None:
        price = offer.price_on(date.today()) if offer else Decimal(0)
    expected = account.expect_model if section.expect_model is None else section.expect_model
    templates = _templates(section, model.section, where, traits, catalog, upstream_model)
    has_field = traits.input_type is not None and not traits.input_type.is_passed_on
    return Route(
        account=account,
        upstream_model=upstream_model,
        width=model.width,
        limits=_limits(section, where, account, traits, offer, model.max_input_tokens),
        usd_per_million_tokens=price,
        narrowing=section.narrowing
        or (known.narrowing if known else None)
        or ("native" if traits.width_field else "cut"),
        accepts_tokens=traits.accepts_tokens,
        priority=priority,
        weight=section.weight,
        tokenizer=section.tokenizer or (known.tokenizer if known else None),
        expect_model=_expected_model(expected, upstream_model),
        model_name_unchecked=expected is False,
        alias=model.name,
        encoding=account.encoding if traits.base64 else "float",
        templates=templates,
        token_arrays=_token_arrays(model.token_arrays, traits),
        normalize="always" if model.section.normalize else "never" if traits.narrow_is_unit else "narrow",
        is_asymmetric=bool(templates) or has_field,
    )


def _limits(
    section: RouteSection, where: str, account: Account, traits: Traits, offer: Offer | None, max_input_tokens: int
) -> Limits:
    base = traits.limits
    inputs = section.max_inputs_per_call or (offer.max_inputs_per_call if offer else None) or base.inputs_per_call
    call_tokens = section.max_tokens_per_call or (offer.max_tokens_per_call if offer else None) or base.tokens_per_call
    # Large calls cannot be paced: the limit is lowered where it is large against the account's quota.
    of_quota = quota.max_call_tokens(account.tokens_per_minute, account.requests_per_minute)
    limits = Limits(
        inputs_per_call=inputs,
        tokens_per_input=section.max_tokens_per_input or max_input_tokens,
        tokens_per_call=call_tokens if of_quota is None else min(call_tokens, of_quota),
        bytes_per_call=section.max_bytes_per_call or base.bytes_per_call,
    )
    if min(limits.inputs_per_call, limits.tokens_per_input, limits.tokens_per_call, limits.bytes_per_call) < 1:
        raise ConfigError(f"{where}: limits must be more than 0", param=where)
    return limits


def _templates(
    route: RouteSection, model: ModelSection, where: str, traits: Traits, catalog: Catalog, upstream_model: str
) -> dict[str, str]:
    """Templates by input_type: the configuration's, then the catalog's where the provider has no field for it."""
    known = catalog.templates_of(upstream_model)
    templates: dict[str, str] = {}
    if known is not None and (known.instead_of_field or traits.input_type is None):
        templates = known.by_type()
    for name in ("query", "document"):
        template = getattr(route, f"{name}_template")
        if template is None:
            template = getattr(model, f"{name}_template")
        if template is not None:
            if template.count(TEXT) != 1:
                raise ConfigError(
                    f"{name}_template of {where} must hold {TEXT} once, where the input belongs",
                    param=f"{where}.{name}_template",
                )
            templates[name] = template
    return templates


def _token_arrays(setting: str | None, traits: Traits) -> str | None:
    """The tokenizer by which token arrays become text. The model in this process takes cl100k's, as LangChain sends."""
    if traits.accepts_tokens or setting == REFUSE:
        return None
    return setting or (CL100K if traits.kind == "local" else None)


def _check_local(section: RouteSection, where: str, alias: str, width: int, upstream_model: str) -> None:
    """Raise ConfigError for what no model in this process can do, which would otherwise look like an outage."""
    if upstream_model not in WIDTHS:
        fault = f"{where}.model = {upstream_model!r}" if section.model else f"{where}.model is left out, and {alias!r}"
        raise ConfigError(
            f'{fault} is no model that kind = "local" has: {", ".join(WIDTHS)}. Set one of them as the route\'s model',
            param=f"{where}.model",
        )
    if width != WIDTHS[upstream_model]:
        raise ConfigError(
            f"models.{alias}.dimensions must be {WIDTHS[upstream_model]}, the width of {upstream_model}; "
            "narrower vectors belong into allowed_dimensions",
            param=f"models.{alias}.dimensions",
        )
    if section.narrowing == "native":
        raise ConfigError(f'{where}.narrowing must be "cut" for kind = "local"', param=f"{where}.narrowing")


def _expected_model(setting: bool | str | None, upstream_model: str) -> str | None:
    """The model that replies must name: the requested one, or the configured one; None: any."""
    return setting if isinstance(setting, str) else upstream_model if setting else None


def _dimensions(value: str | list[int], width: int | None, where: str) -> frozenset[int] | range:
    """The widths of a setting, none above `width`. Raises ConfigError."""
    allowed: frozenset[int] | range
    if isinstance(value, list):
        allowed = frozenset(value) | ({width} if width is not None else set())
    else:
        low, dots, high = value.partition("..")
        if not dots or not low.isdigit() or not high.isdigit():
            raise ConfigError(
                f'{where}.allowed_dimensions must be "LOW..HIGH" or a list of widths',
                param=f"{where}.allowed_dimensions",
            )
        allowed = range(int(low), int(high) + 1)
    if min(allowed, default=0) < 1 or (width is not None and max(allowed) > width):
        raise ConfigError(f"{where}.allowed_dimensions must lie within 1..{width}", param=f"{where}.allowed_dimensions")
    return allowed


def _price(value: str | float | int | None, where: str) -> Decimal | None:
    if value is None:
        return None
    try:
        price = Decimal(str(value))
    except InvalidOperation as error:
        raise ConfigError(f"{where} = {value!r} is not a number", param=where) from error
    if not price.is_finite() or price < 0:
        raise ConfigError(f"{where} must be 0 or more", param=where)
    return price
