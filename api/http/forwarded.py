"""Whose request it is where reverse proxies stand before us.

Only the address is of use: no answer of ours names a scheme or a host, so that X-Forwarded-Proto and X-Forwarded-Host
have nothing to change. A header counts only as far as proxies that are trusted have written it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

Networks = Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]

HEADER = b"x-forwarded-for"
MAX_HOPS = 16


def client_address(scope: Scope, trusted: Networks) -> str | None:
    """The address of the client: the last one that a trusted proxy has written and that is no such proxy's.

    None where the server knows no peer. What a peer that is not trusted has written is not read.
    """
    client: Any = scope.get("client")
    if not client:
        return None
    peer = str(client[0])
    if not _is_trusted(peer, trusted):
        return peer
    text = b",".join(value for name, value in scope["headers"] if name == HEADER).decode("latin-1")
    for part in reversed(text.split(",")[-MAX_HOPS:]):
        address = _address(part.strip())
        if address is None:  # not an address: whoever wrote it cannot be told
            break
        peer = address
        if not _is_trusted(address, trusted):
            break
    return peer


def _is_trusted(text: str, trusted: Networks) -> bool:
    address = _parsed(text)
    return address is not None and any(address in network for network in trusted)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _address(text: str) -> str | None:
    """`1.2.3.4`, `1.2.3.4:80`, `::1` or `[::1]:80`, without the port, in its usual form."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    address = _parsed(text)
    return None if address is None else str(address)
