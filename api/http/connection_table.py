"""The connections of one API process: their limits, their addresses, and their timeouts.

A connection costs memory and a file descriptor before its first request, and opening one needs no key. So the number
of connections is limited, in total and per address, and a connection without progress is closed. When the table is
full, the connection that has been idle for longest is closed; one with a running request never is.
"""

from __future__ import annotations

import ipaddress
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

from engine.config.settings import Settings
from engine.observability.telemetry import CONNECTIONS, CONNECTIONS_CLOSED
from models.errors import ConfigError, EmbedmillError, Overloaded, RateLimited

log = logging.getLogger("embedmill.connections")

RESERVED_DESCRIPTORS = 400  # 256 for calls to providers; database, broker, Redis, files and pipes share the rest
MIN_CONNECTIONS = 16
# A connection that is closed while bytes of it are unread is reset, and the client never sees the answer.
LINGER_S = 2.0


class Phase(StrEnum):
    """What a connection is waiting for."""

    HEAD = "head"  # the rest of a request's head
    IDLE = "idle"  # the next request
    BODY = "body"  # more of a request's body
    WORK = "work"  # our own answer: no clock of the client's runs
    WRITE = "write"  # the client, to read what we have written
    CLOSE = "close"  # the client, to read the last of it
    LINGER = "linger"  # the client, to read why it was refused: what it still sends is thrown away meanwhile


class TrackedConnection(Protocol):
    """What the table reads and does of a connection; `connection.Connection` is one."""

    address: str

    def phase(self) -> Phase:
        """What the connection waits for now."""

    def has_moved(self, phase: Phase, now: float) -> bool:
        """True when it has made progress since its clock was set; the clock is then set to `now`."""

    def waited_s(self, now: float) -> float:
        """Seconds since its last progress."""

    def expire(self, phase: Phase) -> None:
        """Close it: its time in this phase is over."""

    def evict(self) -> None:
        """Close it to make room for another connection."""

    def __hash__(self) -> int: ...


def address_group(address: str) -> str:
    """The addresses that count as one client: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))


def parse_networks(text: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Comma-separated addresses and networks. Raises ConfigError."""
    try:
        return [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(
            f"EMBEDMILL_TRUSTED_PROXIES: {error}; write addresses or networks with commas between them, as in "
            "10.0.0.0/8,::1",
            param="EMBEDMILL_TRUSTED_PROXIES",
        ) from error


class ConnectionTable:
    """Admits connections, evicts idle ones, and closes those whose timeout is over."""

    def __init__(self, settings: Settings, *, max_descriptors: int) -> None:
        available = max(MIN_CONNECTIONS, max_descriptors - RESERVED_DESCRIPTORS)
        self.limit = min(settings.max_connections, available)
        self.limit_per_address = settings.max_connections_per_address or max(1, self.limit // 2)
        self.is_draining = False
        self._timeouts_s = {
            Phase.HEAD: settings.head_timeout_s,
            Phase.IDLE: settings.keep_alive_s,
            Phase.BODY: settings.stall_timeout_s,
            Phase.WRITE: settings.stall_timeout_s,
            Phase.CLOSE: settings.stall_timeout_s,
            Phase.LINGER: LINGER_S,
        }
        self._trusted = parse_networks(settings.trusted_proxies)
        self._open: set[TrackedConnection] = set()
        self._by_address: Counter[str] = Counter()
        # Idle connections, the longest idle first.
        self._idle: OrderedDict[TrackedConnection, None] = OrderedDict()
        self._closed: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: TrackedConnection) -> EmbedmillError | None:
        """Add a new connection, evicting an idle one when the table is full. Returns the error when it is refused."""
        if self._is_over_share(connection.address):
            self.count_closed("address_share")
            return RateLimited("There are too many connections from your address: use fewer, and keep them open.")
        if len(self._open) >= self.limit:
            if not self._idle:
                self.count_closed("full")
                return Overloaded("The server has as many connections as it can serve. Try again soon.")
            longest_idle, _ = self._idle.popitem(last=False)
            self.remove(longest_idle)
            self.count_closed("evicted")
            longest_idle.evict()
        self._open.add(connection)
        self._by_address[connection.address] += 1
        self._idle[connection] = None
        return None

    def remove(self, connection: TrackedConnection) -> None:
        """The connection is closed. Does nothing for one that is not in the table."""
        if connection not in self._open:
            return
        self._open.discard(connection)
        self._idle.pop(connection, None)
        self._by_address[connection.address] -= 1
        if self._by_address[connection.address] <= 0:
            del self._by_address[connection.address]

    def mark_busy(self, connection: TrackedConnection) -> None:
        """The connection has a running request: it is not evicted."""
        self._idle.pop(connection, None)

    def mark_idle(self, connection: TrackedConnection) -> None:
        """The connection has no running request any more."""
        if connection in self._open:
            self._idle[connection] = None

    def count_closed(self, reason: str) -> None:
        """Count a connection that we closed; each reason is logged once a second."""
        self._closed[reason] += 1
        CONNECTIONS_CLOSED.labels(reason).inc()

    def sweep(self, now: float) -> None:
        """Close the connections whose timeout is over, and log what was closed since the last sweep."""
        CONNECTIONS.set(len(self._open))
        for connection in self._expired(now):
            phase = connection.phase()
            if phase not in (Phase.IDLE, Phase.LINGER):  # those end in this way as a rule
                self.count_closed(f"{phase}_timeout")
            connection.expire(phase)
        for reason, count in self._closed.items():
            log.warning("closed %d connections (%s); %d of %d are open", count, reason, len(self._open), self.limit)
        self._closed.clear()

    def _expired(self, now: float) -> Iterator[TrackedConnection]:
        for connection in list(self._open):
            phase = connection.phase()
            if not connection.has_moved(phase, now):
                timeout_s = self._timeouts_s.get(phase)
                if timeout_s is not None and connection.waited_s(now) > timeout_s:
                    yield connection

    def _is_over_share(self, address: str) -> bool:
        if self._by_address[address] < self.limit_per_address:
            return False
        try:
            network = ipaddress.ip_network(address, strict=False)
        except ValueError:
            return True
        return not any(
            network.version == trusted.version and network.subnet_of(trusted)  # type: ignore[arg-type]
            for trusted in self._trusted
        )
