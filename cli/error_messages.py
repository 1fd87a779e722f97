"""Our messages, with a fix, for errors of the system and of libraries, whose own texts may quote secrets."""

from __future__ import annotations

import errno
import socket
import ssl

from cli.errors import CliError

DEBUG = "EMBEDMILL_LOG_LEVEL=DEBUG shows where"
SYSTEM_REASONS = {
    errno.EACCES: ("you have no right to", "see the mode and owner of the file and its folder"),
    errno.EPERM: ("you have no right to", "see the mode and owner of the file and its folder"),
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.ENOTDIR: ("a part of its path is no folder", "check the path"),
    errno.EEXIST: ("there is something of that name already", "move it away"),
    errno.ENOSPC: ("the disk is full", "free some, or use another disk"),
    errno.EDQUOT: ("your quota of the disk is used up", "free some, or use another disk"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or choose another folder"),
    errno.EMFILE: ("too many files are open", "raise the limit with `ulimit -n`"),
    errno.ENFILE: ("too many files are open on this machine", "raise fs.file-max, or stop some processes"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EIO: ("the disk does not work", "see the system's log"),
    errno.ELOOP: ("its links lead in a circle", "mend them"),
}
NETWORK_REASONS = {
    errno.ECONNREFUSED: ("nothing listens there", "is it started, and is the port right?"),
    errno.EHOSTUNREACH: ("there is no way to that machine", "check the address and the network"),
    errno.ENETUNREACH: ("there is no way to that network", "check the address and the network"),
    errno.ETIMEDOUT: ("it did not answer in time", "check the address, the network and a firewall"),
    errno.ECONNRESET: ("it closed the connection", "is it the right port?"),
    errno.EPIPE: ("it closed the connection", "is it the right port?"),
}
# By the module and name of a class, so that no library is imported to name its errors; the nearest base class counts.
LIBRARY_REASONS = {
    "sqlalchemy.exc.ArgumentError": ("EMBEDMILL_DATABASE_URL is no database URL", "write postgresql://user@host/name"),
    "sqlalchemy.exc.NoSuchModuleError": ("that kind of database is not known", "use PostgreSQL or SQLite"),
    "sqlalchemy.exc.DBAPIError": ("the database refused a statement", "`embedmill doctor` looks at it"),
    "sqlalchemy.exc.SQLAlchemyError": ("the database cannot be used", "`embedmill doctor` looks at it"),
    "alembic.util.exc.CommandError": (
        "the database is at a revision that this version does not know",
        "use the newer version that migrated it, or name one that `alembic history` lists",
    ),
    "asyncpg.exceptions._base.PostgresError": ("PostgreSQL refused", "`embedmill doctor` looks at it"),
    "redis.exceptions.AuthenticationError": ("Redis refuses the password", "correct it in EMBEDMILL_REDIS_URL"),
    "redis.exceptions.RedisError": ("Redis cannot be used", "`embedmill doctor` looks at it"),
    "kombu.exceptions.KombuError": ("the broker cannot be used", "`embedmill doctor` looks at it"),
    "amqp.exceptions.AMQPError": ("the broker refused", "`embedmill doctor` looks at it"),
    "httpx.InvalidURL": ("that is not a URL", "it must look like http://127.0.0.1:8080"),
    "httpx.DecodingError": ("the server's answer is packed wrongly", "is --url right, and no proxy between?"),
    "httpx.TooManyRedirects": ("the server sends from one place to another", "is --url right?"),
    "pyarrow.lib.ArrowException": ("the data does not fit the format", "see the file's columns"),
}


def explain(error: BaseException) -> CliError:
    """The message and the fix for an unexpected error."""
    if isinstance(error, ImportError):
        name = error.name or "a package"
        return CliError(f"{name} is not installed", "install embedmill again: `make install`")
    if isinstance(error, MemoryError):
        return CliError("the memory is used up", "stop other programs, or send the corpus in parts")
    if isinstance(error, OSError) and (reason := system_reason(error)):
        where = f"{error.filename}: " if error.filename is not None else ""
        return CliError(f"{where}{reason[0]}", reason[1])
    for base in type(error).__mro__:
        for name in (
            f"{base.__module__}.{base.__qualname__}",
            f"{base.__module__.partition('.')[0]}.{base.__qualname__}",
        ):
            if name in LIBRARY_REASONS:
                return CliError(*LIBRARY_REASONS[name])
    message = " ".join(str(error).split()) or "no message"
    return CliError(f"{type(error).__name__}: {message}", DEBUG)


def system_reason(error: OSError) -> tuple[str, str] | None:
    """The reason and the fix for an error of the operating system; None for a rare one."""
    if isinstance(error, socket.gaierror):
        return "that name is not known here", "check the address and the DNS"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate cannot be trusted", "SSL_CERT_FILE names a file with your own authority's certificate"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS as it should", "is it http:// rather than https://?"
    if isinstance(error, TimeoutError):
        return NETWORK_REASONS[errno.ETIMEDOUT]
    return SYSTEM_REASONS.get(error.errno or 0) or NETWORK_REASONS.get(error.errno or 0)


def connection_reason(error: BaseException) -> tuple[str, str]:
    """The reason and the fix for a failed connection, by the first cause that the operating system reports."""
    seen_ids: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen_ids:
        seen_ids.add(id(cause))
        if isinstance(cause, OSError) and (reason := system_reason(cause)):
            return reason
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    for word, number in (("refused", errno.ECONNREFUSED), ("timed out", errno.ETIMEDOUT), ("reset", errno.ECONNRESET)):
        if word in text.lower():
            return NETWORK_REASONS[number]
    names = {base.__name__ for base in type(error).__mro__}
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return system_reason(ssl.SSLCertVerificationError()) or ("", "")
    if "ProxyError" in names:
        return "the proxy of the environment refuses", "see HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
    if "ConnectTimeout" in names or "PoolTimeout" in names:
        return NETWORK_REASONS[errno.ETIMEDOUT]
    if "TimeoutException" in names:
        return "it accepted the connection and did not answer in time", "is it embedmill's port? see the server's log"
    if "RemoteProtocolError" in names:
        return "it does not answer as HTTP", "is it embedmill's port, and http:// or https:// right?"
    if "LocalProtocolError" in names:
        return "the request could not be written", "see the key and the URL for characters that do not belong there"
    return "the connection broke", "try again; see the server's log"
