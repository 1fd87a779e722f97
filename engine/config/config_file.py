"""Reads embedmill.toml into aliases, routes and accounts. An error names the key, and suggests the intended one."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

import msgspec

import providers
from engine.config.catalog import CATALOG, CatalogModel
from engine.config.proxies import proxy_url
from engine.config.sections import AccountSection, ModelSection, RouteSection
from engine.config_checks import check_names, check_secret
from engine.limiter import quota
from engine.planning.tokens import CL100K
from models.embedding import Account, Alias, Limits, Route
from models.errors import ConfigError
from providers.local import WIDTHS

MAX_CONCURRENCY = 64


Section = TypeVar("Section", AccountSection, ModelSection)

DEFAULT_FILE: dict[str, Any] = {"providers": {"local": {"kind": "local"}}}


def load(path: str, environ: Mapping[str, str] | None = None) -> dict[str, Alias]:
    """Read a configuration file (empty path: the built-in local model). Raises ConfigError that names the key."""
    if not path:
        return parse(DEFAULT_FILE, environ)
    try:
        document = tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"the configuration file {path} does not exist", param="CONFIG") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", param="CONFIG") from error
    return parse(document, environ)


def changed_at(path: str) -> int:
    """Unix seconds at which the configuration file (empty path: the built-in one) was changed last."""
    return int(Path(path or __file__).stat().st_mtime)


def parse(document: dict[str, Any], environ: Mapping[str, str] | None = None) -> dict[str, Alias]:
    """Turn a parsed configuration into aliases by name. Raises ConfigError that names the key."""
    environ = os.environ if environ is None else environ
    _check_keys(document, ("providers", "models"), "")
    accounts = {
        name: _account(name, _section(value, AccountSection, f"providers.{name}"), environ)
        for name, value in _table(document, "providers").items()
    }
    if not accounts:
        raise ConfigError("no [providers.<name>] section: nothing could serve a request", param="providers")
    aliases = {
        name: _alias(name, _section(value, ModelSection, f"models.{name}"), accounts)
        for name, value in _table(document, "models").items()
    }
    for name, known in CATALOG.items():
        serving = [RouteSection(account.name) for account in accounts.values() if _account_serves(account, known)]
        if serving and name not in aliases:
            aliases[name] = _alias(name, ModelSection(serving), accounts)
    if not aliases:
        raise ConfigError("no [models.<name>] section, and no account that serves a well-known model", param="models")
    check_names(accounts, aliases)
    return aliases


def _account_serves(account: Account, known: CatalogModel) -> bool:
    # With another base URL it is a compatible server with models of its own, unless its name is the vendor's.
    vendor = providers.PROVIDERS[account.kind].default_base_url
    is_own_endpoint = (
        account.base_url == vendor or account.name == known.kind or account.base_url.startswith("inproc://")
    )
    return account.kind == known.kind and is_own_endpoint


def _account(name: str, section: AccountSection, environ: Mapping[str, str]) -> Account:
    where = f"providers.{name}"
    if section.kind not in providers.PROVIDERS:
        raise ConfigError(
            f"{where}.kind = {section.kind!r} is not a provider{_did_you_mean(section.kind, providers.PROVIDERS)}",
            param=f"{where}.kind",
        )
    if section.kind != "fake" and (section.script or section.latency_ms):
        raise ConfigError(f'{where}: script and latency_ms belong to kind = "fake" only', param=f"{where}.script")
    if (section.max_concurrency is not None and section.max_concurrency < 1) or section.timeout_s <= 0:
        raise ConfigError(f"{where}: max_concurrency and timeout_s must be more than 0", param=where)
    for key in ("requests_per_minute", "tokens_per_minute"):
        if (limit := getattr(section, key)) is not None and limit < 1:
            raise ConfigError(
                f"{where}.{key} must be more than 0; without a quota, leave it out", param=f"{where}.{key}"
            )
    vendor = providers.PROVIDERS[section.kind].default_base_url
    if section.kind == "fake":
        vendor = f"inproc://fake/{name}/v1"  # an upstream for each account: each plays its own script
    for key in ("base_url", "proxy"):
        if section.kind == "local" and getattr(section, key) is not None:
            raise ConfigError(
                f'{where}.{key} has no meaning for kind = "local", whose model runs in this process: leave it out',
                param=f"{where}.{key}",
            )
    base_url = (section.base_url or vendor).rstrip("/")
    if section.base_url and not section.base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{where}.base_url must start with http:// or https://", param=f"{where}.base_url")
    return Account(
        name=name,
        kind=section.kind,
        base_url=base_url,
        api_key=_secret(section.api_key, f"{where}.api_key", environ),
        max_concurrency=section.max_concurrency or MAX_CONCURRENCY,
        concurrency_is_global=section.max_concurrency is not None,
        timeout_s=section.timeout_s,
        requests_per_minute=section.requests_per_minute,
        tokens_per_minute=section.tokens_per_minute,
        expect_model=section.expect_model,
        allow_zero_vectors=section.allow_zero_vectors,
        drift_probe=section.drift_probe or None,
        proxy=_proxy_of(section.proxy, f"{where}.proxy", environ),
        encoding=_encoding(section.encoding, f"{where}.encoding"),
        allowed_options=None if section.allowed_options is None else frozenset(section.allowed_options),
        settings={"script": section.script, "latency_ms": section.latency_ms} if section.kind == "fake" else {},
        secret_files={
            key: reference.removeprefix("file:")
            for key in ("api_key", "proxy")
            if (reference := getattr(section, key) or "").startswith("file:")
        },
    )


def _encoding(name: str, where: str) -> str:
    if name not in ("base64", "float"):
        raise ConfigError(f'{where} must be "base64" or "float"', param=where)
    return name


def _proxy_of(text: str | None, where: str, environ: Mapping[str, str]) -> str | None:
    """The URL of an account's proxy; "" for "none". Raises ConfigError, also for a password in the file."""
    if text is None:
        return None
    if text == "none":
        return ""
    if text.startswith(("env:", "file:")):
        return proxy_url(_secret(text, where, environ) or "", where)
    if "@" in text:
        raise ConfigError(
            f"{where} holds a credential: write env:NAME or file:PATH, and keep the whole URL there", param=where
        )
    return proxy_url(text, where)


def _secret(reference: str | None, where: str, environ: Mapping[str, str]) -> str | None:
    """Resolve env:NAME or file:PATH. A key itself is refused: configuration files end up in repositories."""
    if reference is None:
        return None
    scheme, _, rest = reference.partition(":")
    if scheme == "env" and rest:
        if not environ.get(rest):
            raise ConfigError(f"{where} points at the environment variable {rest}, which is not set", param=where)
        return check_secret(environ[rest], where)
    if scheme == "file" and rest:
        try:
            return check_secret(Path(rest).read_text("utf-8"), where)
        except OSError as error:
            raise ConfigError(
                f"{where} points at {rest}, which cannot be read: {error.strerror}", param=where
            ) from error
    raise ConfigError(f"{where} must be env:NAME or file:PATH, never the key itself", param=where)


def _alias(name: str, section: ModelSection, accounts: dict[str, Account]) -> Alias:
    where = f"models.{name}"
    known = CATALOG.get(name) or _unlisted_model(name)
    width = section.dimensions or known.width
    if width < 1:
        raise ConfigError(f"{where}.dimensions (the native width) is missing", param=f"{where}.dimensions")
    if not section.routes:
        raise ConfigError(f"{where} has no [[{where}.routes]]", param=f"{where}.routes")
    price = _price(section.input_usd_per_million_tokens, f"{where}.input_usd_per_million_tokens")
    if price is None:
        price = known.usd_per_million_tokens
    tokens = section.max_input_tokens or known.max_input_tokens
    allowed = known.allowed or frozenset({width})
    if section.allowed_dimensions is not None:
        allowed = _dimensions(section.allowed_dimensions, width, where)
    routes = tuple(
        _route(route, f"{where}.routes[{i}]", accounts, name, width, tokens, price, known)
        for i, route in enumerate(section.routes)
    )
    return Alias(name, width, allowed, tokens, section.space or known.space, routes, price)


def _unlisted_model(name: str) -> CatalogModel:
    """What a section says by default of a model that the catalog does not have; it must give the width."""
    return CatalogModel("", name, 0, frozenset(), 8192, name, Decimal(0), "")


def _route(
    section: RouteSection,
    where: str,
    accounts: dict[str, Account],
    alias: str,
    width: int,
    max_input_tokens: int,
    alias_price: Decimal,
    known: CatalogModel,
) -> Route:
    account = accounts.get(section.provider)
    if account is None:
        raise ConfigError(
            f"{where}.provider = {section.provider!r} is not an account{_did_you_mean(section.provider, accounts)}",
            param=f"{where}.provider",
        )
    provider = providers.PROVIDERS[account.kind]
    if section.tokenizer not in (None, CL100K):
        raise ConfigError(f'{where}.tokenizer must be "{CL100K}", or left out', param=f"{where}.tokenizer")
    if section.narrowing not in (None, "native", "cut"):
        raise ConfigError(f'{where}.narrowing must be "native" or "cut"', param=f"{where}.narrowing")
    price = _price(section.input_usd_per_million_tokens, f"{where}.input_usd_per_million_tokens")
    base = provider.limits
    limits = Limits(
        inputs_per_call=section.max_inputs_per_call or base.inputs_per_call,
        tokens_per_input=section.max_tokens_per_input or max_input_tokens,
        tokens_per_call=_tokens_per_call(account, section.max_tokens_per_call or base.tokens_per_call),
        bytes_per_call=section.max_bytes_per_call or base.bytes_per_call,
    )
    if min(limits.inputs_per_call, limits.tokens_per_input, limits.tokens_per_call, limits.bytes_per_call) < 1:
        raise ConfigError(f"{where}: limits must be more than 0", param=where)
    upstream_model = section.model or known.upstream_model
    if account.kind == "local":
        _check_local(section, where, alias, width, upstream_model)
    expected = account.expect_model if section.expect_model is None else section.expect_model
    return Route(
        account=account,
        upstream_model=upstream_model,
        width=width,
        limits=limits,
        usd_per_million_tokens=alias_price if price is None else price,
        narrowing=section.narrowing or ("cut" if account.kind == "local" else known.narrowing),
        accepts_tokens=provider.accepts_tokens,
        priority=section.priority,
        weight=section.weight,
        tokenizer=section.tokenizer or known.tokenizer,
        expect_model=_expected_model(expected, upstream_model),
        model_name_unchecked=expected is False,
        alias=alias,
        encoding=account.encoding,
    )


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


def _tokens_per_call(account: Account, limit: int) -> int:
    """The limit of one call, lowered where it is large against the account's quota: large calls cannot be paced."""
    of_quota = quota.max_call_tokens(account.tokens_per_minute, account.requests_per_minute)
    return limit if of_quota is None else min(limit, of_quota)


def _expected_model(setting: bool | str | None, upstream_model: str) -> str | None:
    """The model that replies must name: the requested one, or the configured one; None: any."""
    return setting if isinstance(setting, str) else upstream_model if setting else None


def _dimensions(value: str | list[int], width: int, where: str) -> frozenset[int] | range:
    allowed: frozenset[int] | range
    if isinstance(value, list):
        allowed = frozenset(value) | {width}
    else:
        low, dots, high = value.partition("..")
        if not dots or not low.isdigit() or not high.isdigit():
            raise ConfigError(
                f'{where}.allowed_dimensions must be "LOW..HIGH" or a list of widths',
                param=f"{where}.allowed_dimensions",
            )
        allowed = range(int(low), int(high) + 1)
    if min(allowed, default=0) < 1 or max(allowed) > width:
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


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table: [{name}.<name>]", param=name)
    return value


def _section(value: Any, kind: type[Section], where: str) -> Section:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table", param=where)
    _check_keys(value, kind.__struct_fields__, where)
    for i, route in enumerate(value.get("routes") or []):
        if isinstance(route, dict):
            _check_keys(route, RouteSection.__struct_fields__, f"{where}.routes[{i}]")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}", param=where) from error


def _check_keys(table: dict[str, Any], valid: Iterable[str], where: str) -> None:
    for key in table:
        if key not in valid:
            name = f"{where}.{key}" if where else key
            raise ConfigError(f"unknown key {name}{_did_you_mean(key, valid)}", param=name)


def _did_you_mean(word: str, valid: Iterable[str]) -> str:
    names = list(valid)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(sorted(names))}"
