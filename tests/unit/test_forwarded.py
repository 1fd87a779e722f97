"""X-Forwarded-For: believed as far as trusted proxies wrote it, and no further."""

from __future__ import annotations

import pytest

from api.http.connection_table import parse_networks
from api.http.forwarded import client_address

TRUSTED = parse_networks("10.0.0.0/8,::1")


def address(peer: str | None, *headers: str) -> str | None:
    scope = {"client": (peer, 4711) if peer else None, "headers": [(b"x-forwarded-for", h.encode()) for h in headers]}
    return client_address(scope, TRUSTED)


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),  # anybody can write that
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.2.3.4, 198.51.100.7"], "198.51.100.7"),  # the first is what the client wrote
        ("10.0.0.1", ["1.2.3.4", "198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["evil\"'<script>, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.7:5555"], "198.51.100.7"),
        ("::1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("::1", ["2001:DB8:0::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        (None, ["1.2.3.4"], None),
        ("unix-socket", ["1.2.3.4"], "unix-socket"),
        ("10.0.0.1", [",".join(["10.0.0.2"] * 100_000)], "10.0.0.2"),
    ],
)
def test_whose_request_it_is(peer: str | None, headers: list[str], client: str | None) -> None:
    assert address(peer, *headers) == client
