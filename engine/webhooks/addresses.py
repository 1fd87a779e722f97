"""Which addresses a webhook may be sent to: globally routable unicast, and the networks that the operator allows.

The networks that are refused are listed here, not left to `ipaddress.is_global`, whose answer differs between versions
of Python. Sources: the special-purpose address registries of IANA (IPv4 and IPv6, read in August 2026).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from models.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

REFUSED_IPV4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata server at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform service, reachable from its virtual machines alone
        "169.254.0.0/16",  # link-local; metadata servers of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
GLOBAL_IPV6 = IPv6Network("2000::/3")  # everything else is loopback, link-local, unique local, multicast, mapped, NAT64
REFUSED_IPV6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: holds an IPv4 address
        "3fff::/20",  # documentation
    )
)


def parse_networks(text: str) -> tuple[Network, ...]:
    """The networks of EMBEDMILL_WEBHOOK_ALLOWED_NETWORKS, separated by commas. Raises ConfigError."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(
            f"EMBEDMILL_WEBHOOK_ALLOWED_NETWORKS: {error}; expected networks such as 10.20.0.0/16, separated by commas",
            param="EMBEDMILL_WEBHOOK_ALLOWED_NETWORKS",
        ) from error


def parse_address(text: str) -> Address | None:
    """The address that the text is, an IPv4-mapped one as the IPv4 address that it stands for; None: it is a name."""
    try:
        address = ip_address(text.partition("%")[0])  # without the zone of a link-local one
    except ValueError:
        return None
    return unmapped(address)


def unmapped(address: Address) -> Address:
    """The IPv4 address of an IPv4-mapped one; any other as it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_in(address: Address, networks: Iterable[Network]) -> bool:
    """True when one of the networks contains the address."""
    return any(address.version == network.version and address in network for network in networks)


def is_public(address: Address) -> bool:
    """True for a globally routable unicast address that stands for no other one."""
    if isinstance(address, IPv4Address):
        return not is_in(address, REFUSED_IPV4)
    return address in GLOBAL_IPV6 and not is_in(address, REFUSED_IPV6)


def refused_address(addresses: Sequence[Address], allowed: Sequence[Network]) -> Address | None:
    """The first address that is neither public nor in an allowed network; None when all of them are good."""
    return next((each for each in addresses if not is_public(each) and not is_in(each, allowed)), None)
