"""Accounts from the configuration, or from well-known keys in the environment where there is none."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import providers
from engine.config.proxies import proxy_url
from engine.config.sections import AccountSection, did_you_mean, read_section
from engine.config_checks import check_secret
from models.embedding import Account
from models.errors import ConfigError
from providers.caller_options import GATEWAY, is_adapters_own
from providers.traits import Traits

MAX_CONCURRENCY = 64
MAX_KEYS = 16
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
# Headers that frame the request: a wrong one would break it, or send it elsewhere.
# Headers that hold a credential: never in the file itself.
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie"})
_IN_HOST_OR_PATH = re.compile(r"[A-Za-z0-9._-]{1,253}")
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "content-type", "accept-encoding"})


def accounts_of_environment(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Sections for the kinds whose well-known key, and whose required settings, are in the environment."""
    sections: dict[str, dict[str, Any]] = {}
    for kind, provider in providers.PROVIDERS.items():
        traits = provider.traits
        section: dict[str, Any] = {"kind": kind}
        key = next((name for name in traits.key_variables if environ.get(name, "").strip()), None)
        if key is not None:
            section["api_key"] = f"env:{key}"
        has_secrets = False
        for name, setting in traits.settings.items():
            variable = next((each for each in setting.variables if environ.get(each, "").strip()), None)
            if variable is not None:
                section[name] = f"env:{variable}" if setting.is_secret else environ[variable].strip()
                has_secrets = has_secrets or setting.is_secret
        missing = [
            name
            for name, setting in traits.settings.items()
            if not setting.is_optional and setting.default is None and name not in section
        ]
        if (key is not None or has_secrets) and not missing:
            sections[kind] = section
    return sections


def build_accounts(name: str, value: Any, environ: Mapping[str, str]) -> list[Account]:
    """The account of a section [providers.<name>], once for each of its keys. Raises ConfigError that names the key."""
    where = f"providers.{name}"
    if "#" in name or name == GATEWAY:
        raise ConfigError(f"{where}: a name must have no '#', and not be {GATEWAY!r}", param=where)
    keys = value.get("api_keys") if isinstance(value, dict) else None
    if not keys or not isinstance(keys, list):
        return [_build_account(name, value, environ)]
    if value.get("api_key") is not None:
        raise ConfigError(f"{where} has api_key and api_keys: put all into api_keys", param=f"{where}.api_keys")
    if len(keys) > MAX_KEYS or len(set(map(str, keys))) < len(keys):
        raise ConfigError(f"{where}.api_keys may hold {MAX_KEYS} keys, each once", param=f"{where}.api_keys")
    in_order = value.get("key_use", "in-order") == "in-order"
    return [
        replace(
            _build_account(name, {**value, "api_keys": [], "api_key": key}, environ, f"api_keys[{position}]"),
            name=name if position == 0 else f"{name}#{position + 1}",
            key_rank=position if in_order else 0,
        )
        for position, key in enumerate(keys)
    ]


def _build_account(name: str, value: Any, environ: Mapping[str, str], key: str = "api_key") -> Account:
    where = f"providers.{name}"
    traits = _traits_of(value, where)
    section = read_section(value, AccountSection, where, traits.settings)
    _check_numbers(section, where)
    settings, secrets = _settings_of(value, traits, where, environ)
    api_key = secret(section.api_key, f"{where}.{key}", environ)
    _check_fields(section, where)
    if section.kind == "fake":
        settings |= {"script": section.script, "latency_ms": section.latency_ms}
    return Account(
        name=name,
        kind=section.kind,
        base_url=_base_url(name, section, traits, settings, api_key),
        api_key=api_key,
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
        settings=settings,
        secrets=secrets,
        headers=_headers_of(section, where, environ),
        strip_headers=frozenset(header.lower() for header in section.strip_headers),
        body=section.body,
        renames=section.renames,
        ca_file=_ca_file(section.ca_file, f"{where}.ca_file"),
        secret_files={
            key: reference.removeprefix("file:")
            for key in ("api_key", "proxy")
            if (reference := getattr(section, key) or "").startswith("file:")
        },
    )


def _traits_of(value: Any, where: str) -> Traits:
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        read_section(value, AccountSection, where)  # which says what is missing
        raise ConfigError(f"{where}.kind is missing", param=f"{where}.kind")
    if kind not in providers.PROVIDERS:
        raise ConfigError(
            f"{where}.kind = {kind!r} is not a provider{did_you_mean(kind, providers.PROVIDERS)}",
            param=f"{where}.kind",
        )
    return providers.PROVIDERS[kind].traits


def _check_numbers(section: AccountSection, where: str) -> None:
    if section.kind != "fake" and (section.script or section.latency_ms):
        raise ConfigError(f'{where}: script and latency_ms belong to kind = "fake" only', param=f"{where}.script")
    if (section.max_concurrency is not None and section.max_concurrency < 1) or section.timeout_s <= 0:
        raise ConfigError(f"{where}: max_concurrency and timeout_s must be more than 0", param=where)
    for key in ("requests_per_minute", "tokens_per_minute"):
        if (limit := getattr(section, key)) is not None and limit < 1:
            raise ConfigError(
                f"{where}.{key} must be more than 0; without a quota, leave it out", param=f"{where}.{key}"
            )


def _settings_of(
    value: Mapping[str, Any], traits: Traits, where: str, environ: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings of the kind, and its secrets. Raises ConfigError for one that is missing or no text."""
    settings: dict[str, Any] = {}
    secrets: dict[str, str] = {}
    for name, setting in traits.settings.items():
        given = value.get(name, setting.default)
        # What only the vendor's address needs is not needed at another one.
        is_needed = not setting.is_optional and not (value.get("base_url") and f"{{{name}}}" in traits.base_url)
        if given is None and is_needed:
            raise ConfigError(
                f'{where}.{name} is missing; kind = "{traits.kind}" needs it: {setting.about}', param=f"{where}.{name}"
            )
        if given is None:
            continue
        if not isinstance(given, str) or not given.strip():
            raise ConfigError(f"{where}.{name} must be a text that is not empty", param=f"{where}.{name}")
        if setting.is_secret:
            secrets[name] = secret(given, f"{where}.{name}", environ) or ""
        else:
            settings[name] = given.strip()
    return settings, secrets


def _base_url(
    name: str, section: AccountSection, traits: Traits, settings: Mapping[str, Any], api_key: str | None
) -> str:
    where = f"providers.{name}"
    for key in ("base_url", "proxy"):
        if section.kind == "local" and getattr(section, key) is not None:
            raise ConfigError(
                f'{where}.{key} has no meaning for kind = "local", whose model runs in this process: leave it out',
                param=f"{where}.{key}",
            )
    if section.base_url:
        return _checked_url(section.base_url, f"{where}.base_url")
    if section.kind == "fake":  # an upstream for each account: each plays its own script
        return f"inproc://fake/{name}/v1"
    for beginning, url in traits.base_url_of_key.items():
        if api_key is not None and api_key.startswith(beginning):
            return url
    url = traits.base_url
    for setting, value in settings.items():
        place = f"{{{setting}}}"
        if url.startswith(place):
            _checked_url(value, f"{where}.{setting}")
        elif place in url and not _IN_HOST_OR_PATH.fullmatch(value):
            raise ConfigError(
                f"{where}.{setting} may have letters, digits, '.', '_' and '-'", param=f"{where}.{setting}"
            )
        url = url.replace(place, str(value).rstrip("/"))
    return url.rstrip("/")


def _checked_url(url: str, where: str) -> str:
    """The URL without a slash at its end. Raises ConfigError, also where it holds a credential or a query."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{where} must start with http:// or https://", param=where)
    if "@" in url.partition("://")[2].partition("/")[0] or "?" in url or "#" in url:
        raise ConfigError(
            f"{where} must have no user, password, query or fragment: a key belongs into api_key", param=where
        )
    return url.rstrip("/")


def _check_fields(section: AccountSection, where: str) -> None:
    """Raise ConfigError for a field of `body` or `renames` that an adapter sets, which would never arrive."""
    taken = [("body", name) for name in section.body if is_adapters_own(name)]
    taken += [("renames", name) for name in section.renames.values() if name in ("model", "input")]
    for key, name in taken:
        key = f"{where}.{key}"
        raise ConfigError(f"{key} names {name[:100]!r}, which embedmill sets itself", param=key)


def _headers_of(section: AccountSection, where: str, environ: Mapping[str, str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in section.headers.items():
        key = f"{where}.headers.{name[:100]}"
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _FRAMING:
            raise ConfigError(f"{key} is no header that may be set", param=f"{where}.headers")
        if value.startswith(("env:", "file:")) or name.lower() in _CREDENTIALS:
            value = secret(value, key, environ) or ""
        if not value.isascii() or not value.isprintable():
            raise ConfigError(f"{key} must be printable ASCII", param=f"{where}.headers")
        headers[name.lower()] = value
    return headers


def _ca_file(path: str | None, where: str) -> str | None:
    if path is None:
        return None
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"{where} points at {path}, which holds no certificate that can be read", param=where
        ) from error
    return path


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
        return proxy_url(secret(text, where, environ) or "", where)
    if "@" in text:
        raise ConfigError(
            f"{where} holds a credential: write env:NAME or file:PATH, and keep the whole URL there", param=where
        )
    return proxy_url(text, where)


def secret(reference: str | None, where: str, environ: Mapping[str, str]) -> str | None:
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
