"""The address that a server listens on, and its URL for programs on the same machine."""

from __future__ import annotations

import errno
import socket

from cli.errors import CliError, Failure, NotFound


def usable_port(host: str, port: int, *, name: str = "--port") -> int:
    """The port, when it can be listened on (0: a free one). Raises CliError that says what to change: `name`."""
    try:
        with socket.create_server((host, port), family=_family(host)) as probe:
            usable: int = probe.getsockname()[1]
            return usable
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem, fix = f"port {port} on {host} is in use", f"choose another, e.g. {name} {port + 1}, or {name} 0"
        elif error.errno == errno.EACCES:
            problem, fix = f"port {port} on {host} is not yours to use", f"choose one above 1023 with {name}"
        else:
            fix = "choose --host 127.0.0.1, or 0.0.0.0 for all"
            raise NotFound(f"{host} is no address of this machine", fix) from error
        raise CliError(problem, fix, failure=Failure.MACHINE) from error


def url_of(host: str, port: int) -> str:
    """The URL for programs on this machine; a server on all addresses is reached through loopback."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
