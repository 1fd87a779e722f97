"""Reads embedmill.toml into aliases, routes and accounts. An error names the key, and suggests the intended one."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import providers
from engine.config.accounts import accounts_of_environment, build_accounts
from engine.config.aliases import build_alias, sections_of_catalog
from engine.config.catalog import load_catalog
from engine.config.sections import check_keys, table
from engine.config_checks import check_names
from models.embedding import Alias
from models.errors import ConfigError


def load(path: str, environ: Mapping[str, str] | None = None, data_dir: Path | None = None) -> dict[str, Alias]:
    """Read a configuration file. Empty path: the local model, and accounts of well-known keys in the environment.

    `data_dir` may hold a newer table of models. Raises ConfigError that names the key.
    """
    environ = os.environ if environ is None else environ
    if not path:
        document = {"providers": {**accounts_of_environment(environ), "local": {"kind": "local"}}}
        return parse(document, environ, data_dir)
    try:
        document = tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"the configuration file {path} does not exist", param="CONFIG") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", param="CONFIG") from error
    return parse(document, environ, data_dir)


def changed_at(path: str) -> int:
    """Unix seconds at which the configuration file (empty path: the built-in one) was changed last."""
    return int(Path(path or __file__).stat().st_mtime)


def parse(
    document: dict[str, Any], environ: Mapping[str, str] | None = None, data_dir: Path | None = None
) -> dict[str, Alias]:
    """Turn a parsed configuration into aliases by name. Raises ConfigError that names the key."""
    environ = os.environ if environ is None else environ
    catalog = load_catalog(data_dir)
    check_keys(document, ("providers", "models"), "")
    accounts = {
        account.name: account
        for name, value in table(document, "providers").items()
        for account in build_accounts(name, value, environ)
    }
    if not accounts:
        raise ConfigError("no [providers.<name>] section: nothing could serve a request", param="providers")
    configured = table(document, "models")
    aliases = {name: build_alias(name, value, accounts, catalog) for name, value in configured.items()}
    for name, section in sections_of_catalog(accounts, catalog).items():
        if name not in aliases:
            aliases[name] = build_alias(name, section, accounts, catalog)
    if not aliases:
        traits = [providers.PROVIDERS[account.kind].traits for account in accounts.values()]
        why = "".join(f". {each.title}" for each in traits if not each.can_embed)
        raise ConfigError(
            f"no [models.<name>] section, and no account that serves a well-known model{why}", param="models"
        )
    check_names(accounts, aliases)
    return aliases


def bare_names(aliases: Mapping[str, Alias]) -> dict[str, str]:
    """`text-embedding-3-small` → `openai/text-embedding-3-small`: names that only one model has, here or upstream."""
    owners: dict[str, set[str]] = {}
    for name, alias in aliases.items():
        for bare in {name.rpartition("/")[2], *(route.upstream_model for route in alias.routes)} - set(aliases):
            owners.setdefault(bare, set()).add(name)
    return {bare: next(iter(names)) for bare, names in owners.items() if len(names) == 1}
