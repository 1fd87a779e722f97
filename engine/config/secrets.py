"""Secrets in files (`file:PATH`) are read again when the file changes; no process needs a restart.

Those of the environment (`env:NAME`) cannot change in a running process. A file that has become empty, unreadable or
no secret changes nothing: whoever writes it may be in the middle of that.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from engine.config.proxies import proxy_url
from engine.config_checks import check_secret
from models.embedding import Account, Route
from models.errors import ConfigError

log = logging.getLogger("embedmill.secrets")

# The files' state is read at most once in so long, not for each call.
REFRESH_EVERY_S = 2.0


@dataclass(slots=True)
class _Secrets:
    """The secrets of one account: their files by field, their content, and the file state when it was read."""

    account: Account
    values: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, tuple[int, ...]] = field(default_factory=dict)
    complained: str = ""
    version: int = 0


class SecretFiles:
    """The current secrets of all accounts whose secrets are in files."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._secrets = {account.name: _Secrets(account) for account in accounts if account.secret_files}
        self._look_at = 0.0
        self._reading = asyncio.Lock()
        self._changed: set[str] = set()

    async def keyed(self, route: Route) -> Route:
        """The route with the current secrets of its account's files, at most two seconds old."""
        secrets = self._secrets.get(route.provider)
        if secrets is None:
            return route
        await self.refresh()
        return replace(route, account=replace(route.account, **secrets.values)) if secrets.values else route

    def version(self, account: str) -> int:
        """Grows with every change of the account's secrets."""
        secrets = self._secrets.get(account)
        return secrets.version if secrets is not None else 0

    async def has_changed(self, account: str, version: int) -> bool:
        """After a refusal: read the account's files now. True when a secret has changed since `version`."""
        secrets = self._secrets.get(account)
        if secrets is None:
            return False
        async with self._reading:
            if secrets.version == version:
                # A file may be written twice within one tick of its clock: the content decides.
                await self._read(secrets, by_content=True)
        return secrets.version != version

    async def refresh(self) -> None:
        """Read the files that have changed, at most once in two seconds."""
        if not self._secrets or time.monotonic() < self._look_at:
            return
        async with self._reading:
            if time.monotonic() < self._look_at:
                return
            for secrets in self._secrets.values():
                await self._read(secrets)
            self._look_at = time.monotonic() + REFRESH_EVERY_S

    def take_changed(self) -> set[str]:
        """Accounts whose secrets have changed since the last call of this method."""
        changed, self._changed = self._changed, set()
        return changed

    def note_changed(self, account: str) -> None:
        """Let `take_changed` return the account again."""
        self._changed.add(account)

    async def _read(self, secrets: _Secrets, *, by_content: bool = False) -> None:
        for name, path in secrets.account.secret_files.items():
            try:
                # Beside the event loop: the folder may be a network's.
                found = await asyncio.to_thread(_read, path, None if by_content else secrets.seen.get(name))
                if found is None:
                    continue
                look, text = found
                value = check_secret(text, f"providers.{secrets.account.name}.{name}")
                if name == "proxy":
                    value = proxy_url(value, f"providers.{secrets.account.name}.{name}")
            except (OSError, UnicodeDecodeError, ConfigError) as error:
                self._complain(secrets, path, error)
                continue
            if not value:
                self._complain(secrets, path, None)
                continue
            secrets.seen[name] = look
            secrets.complained = ""
            if value == secrets.values.get(name, getattr(secrets.account, name)):
                continue
            secrets.values[name] = value
            secrets.version += 1
            self._changed.add(secrets.account.name)
            log.info("a secret has changed, and is used from now on: %s of account %s", name, secrets.account.name)

    def _complain(self, secrets: _Secrets, path: str, error: Exception | None) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or "it cannot be read"
        else:
            reason = "it holds no usable secret" if error is not None else "it is empty"
        if secrets.complained != reason:
            secrets.complained = reason
            extra: dict[str, Any] = {"provider": secrets.account.name}
            log.warning("the secret file %s: %s; the former secret is used on", path, reason, extra=extra)


def _read(path: str, seen: tuple[int, ...] | None) -> tuple[tuple[int, ...], str] | None:
    """The file's state and content; None when the state is unchanged."""
    state = Path(path).stat()
    look = (state.st_mtime_ns, state.st_size, state.st_ino)
    return None if look == seen else (look, Path(path).read_text("utf-8"))
