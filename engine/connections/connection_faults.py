"""Causes of failed connections, and advice: by the class and number of an error, never by its text.

The texts of libraries quote addresses and secrets, and change with their versions.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionFault:
    """Two clauses: the cause, to follow "it cannot be used:", and the advice; empty where nothing is known."""

    cause: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """How the service is configured: the setting that holds its URL, and what in it concerns TLS."""

    setting: str
    ca: str  # the parameter that names a file with CAs
    without_tls: str  # what the URL has where the server speaks no TLS


DATABASE = Names("EMBEDMILL_DATABASE_URL", "sslrootcert", "sslmode=disable")
REDIS = Names("EMBEDMILL_REDIS_URL", "ssl_ca_certs", "redis://")
BROKER = Names("EMBEDMILL_BROKER_URL", "ssl_ca_certs", "amqp://")

# OpenSSL's numbers of what is wrong with a certificate (x509_vfy.h, 3.0).
EXPIRED, ANOTHER_HOST, ANOTHER_ADDRESS = 10, 62, 64
OF_SYSTEM = {
    errno.ECONNREFUSED: ("nothing listens there", "is it started, and are host and port in {setting} right?"),
    errno.EHOSTUNREACH: ("there is no way to that machine", "check the address in {setting} and the network"),
    errno.ENETUNREACH: ("there is no way to that network", "check the address in {setting} and the network"),
    errno.ETIMEDOUT: ("it did not answer in time", "check host and port in {setting}, the network and a firewall"),
    errno.ECONNRESET: ("it closed the connection", "is the port in {setting} right, and does it want TLS there?"),
    errno.EPIPE: ("it closed the connection", "is the port in {setting} right, and does it want TLS there?"),
    errno.ENOENT: ("its socket does not exist", "is it started, and is the path in {setting} right?"),
    errno.EACCES: ("its socket may not be opened by this user", "see the mode and owner of the socket"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
}


def connection_fault(error: BaseException, names: Names) -> ConnectionFault | None:
    """The first cause in the error's chain that is known here; None where there is none."""
    for each in chain_of(error):
        if (known := _known(each)) is not None:
            cause, advice = known
            words = {"setting": names.setting, "ca": names.ca, "without_tls": names.without_tls}
            return ConnectionFault(cause, advice.format(**words))
    return None


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _known(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _of_certificate(error.verify_code)
    if isinstance(error, ssl.SSLError):
        return "TLS failed", "does it speak TLS on that port? {without_tls} in {setting} is for one that does not"
    if isinstance(error, socket.gaierror):
        return "its host's name cannot be resolved", "check the host in {setting}, and this machine's DNS"
    if isinstance(error, TimeoutError):
        return OF_SYSTEM[errno.ETIMEDOUT]
    if isinstance(error, OSError):
        if error.errno is None and type(error) is ConnectionError:  # asyncpg, where the server declines TLS
            return (
                "it breaks the connection off",
                "does it speak TLS? {without_tls} in {setting} is for one that does not",
            )
        return OF_SYSTEM.get(error.errno or 0)
    return None


def _of_certificate(code: int) -> tuple[str, str]:
    if code in (ANOTHER_HOST, ANOTHER_ADDRESS):
        return "its certificate is for another name", "write the name that its certificate has into {setting}"
    if code == EXPIRED:
        return "its certificate has expired", "renew it"
    return "its certificate is not trusted here", "name a file with your own CA's certificate with {ca} in {setting}"
