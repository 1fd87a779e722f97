"""The URL of a receiver: what is allowed in it, and to which addresses it may lead (SSRF).

The URL is checked when it is stored, which spares callers a surprise, and again at each delivery, which is what
protects: the address that was checked is the one that is dialled, so a name that changes in between gains nothing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

import httpx

from engine.webhooks.addresses import Address, Network, is_in, parse_address, parse_networks, refused_address
from engine.webhooks.resolver import Resolver
from models.errors import InvalidInput

MAX_URL_CHARS = 2048
# The ports of services that are not web servers are below it, all but 443.
MIN_OPEN_PORT, MAX_PORT = 1024, 65_535
DEFAULT_PORTS = {"https": 443, "http": 80}
# A URL whose name resolves no faster is stored; each delivery resolves it again.
CHECK_TIMEOUT_S = 2.0

_HOST = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")
# A URL that `TargetPolicy.check` has passed.
CheckedUrl = NewType("CheckedUrl", str)


@dataclass(frozen=True, slots=True)
class Target:
    """A receiver: its URL, its host as it is sent and verified, its port, and the addresses that may be dialled."""

    url: httpx.URL
    host: str
    port: int
    addresses: Sequence[Address] = ()


class TargetRefused(Exception):
    """A URL that nothing is sent to. Its text says why, and what to do."""


class TargetPolicy:
    """What URLs of receivers may be. `allowed_networks`: EMBEDMILL_WEBHOOK_ALLOWED_NETWORKS."""

    def __init__(self, allowed_networks: str = "", *, resolver: Resolver | None = None) -> None:
        self._allowed: tuple[Network, ...] = parse_networks(allowed_networks)
        self._resolver = resolver or Resolver()

    async def check(self, url: str, param: str = "url") -> CheckedUrl:
        """The URL, for storing. Raises InvalidInput that names `param`; a name that does not resolve yet is good."""
        try:
            target = self.parse(url)
            try:
                async with asyncio.timeout(CHECK_TIMEOUT_S):
                    await self.resolve(target)
            except TimeoutError:
                pass
            except Unresolved:
                pass
        except TargetRefused as error:
            raise InvalidInput(f"Invalid '{param}': {error}", param=param, code="invalid_webhook_url") from None
        return CheckedUrl(url)

    def parse(self, text: str) -> Target:
        """The URL in its parts. Raises TargetRefused."""
        if not text or len(text) > MAX_URL_CHARS:
            raise TargetRefused(f"expected an https:// URL of at most {MAX_URL_CHARS} characters.")
        try:
            url = httpx.URL(text)
            host = url.raw_host.decode("ascii")
        except (httpx.InvalidURL, ValueError):
            raise TargetRefused("this is no URL. Send one such as https://example.com/hooks.") from None
        if url.scheme not in DEFAULT_PORTS or not host:
            raise TargetRefused("expected an https:// URL with a host.")
        if url.scheme == "http" and not self._allowed:
            raise TargetRefused("expected https://: events are not sent in the clear.")
        if url.userinfo:
            raise TargetRefused("leave the user and password out of it: deliveries are signed instead.")
        port = DEFAULT_PORTS[url.scheme] if url.port is None else url.port
        if port != DEFAULT_PORTS[url.scheme] and not MIN_OPEN_PORT <= port <= MAX_PORT:
            raise TargetRefused(f"port {port} is not allowed; use 443, or one from {MIN_OPEN_PORT} to {MAX_PORT}.")
        target = Target(url, host.removeprefix("[").removesuffix("]"), port)
        literal = parse_address(target.host)
        if literal is not None:
            self._check_addresses(target, [literal])
        elif not _HOST.match(target.host):
            raise TargetRefused("its host is no host's name. Send a URL such as https://example.com/hooks.")
        return target

    async def resolve(self, target: Target) -> Target:
        """The target with its addresses, all of which are good. Raises TargetRefused, or Unresolved."""
        addresses = await self._resolver.addresses(target.host, target.port)
        if not addresses:
            raise Unresolved(f"the host {target.host} does not resolve.")
        self._check_addresses(target, addresses)
        return Target(target.url, target.host, target.port, addresses)

    def _check_addresses(self, target: Target, addresses: Sequence[Address]) -> None:
        # One bad address among good ones refuses the name: whoever controls it chooses their order.
        if refused_address(addresses, self._allowed) is not None:
            raise TargetRefused(
                f"the host {target.host} leads to an address that is not public. Whoever runs this server may allow "
                "its network (EMBEDMILL_WEBHOOK_ALLOWED_NETWORKS)."
            )
        if target.url.scheme == "http" and not all(is_in(each, self._allowed) for each in addresses):
            raise TargetRefused("expected https://: events are not sent in the clear.")


class Unresolved(TargetRefused):
    """A name without an address, for now."""
