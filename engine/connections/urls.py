"""Parses URLs of PostgreSQL, Redis and brokers once, and gives each library its own parameters.

A URL that one of the libraries cannot use as it is meant is refused here, by one line that names the parameter and
never the password. TLS verifies the server's certificate and name unless the URL says otherwise; PostgreSQL's `sslmode`
means what it means to libpq ("Connection Strings", PostgreSQL 17 manual, section 32.1, read 2025-11).
"""

from __future__ import annotations

import shlex
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from models.errors import ConfigError

SAME_SCHEMES = {"valkey": "redis", "valkeys": "rediss", "pyamqp": "amqp", "py-amqp": "amqp", "redis+socket": "unix"}
POSTGRES_SCHEMES = frozenset({"postgresql", "postgres"})
POSTGRES_DRIVERS = frozenset({"asyncpg", "psycopg", "psycopg_async", "psycopg2", "psycopg2cffi", "pg8000"})
# What asyncpg reads of a URL itself, as libpq does.
OF_DRIVER = frozenset((
    "host", "port", "user", "password", "dbname", "database", "passfile", "sslcert", "sslkey", "sslrootcert",
    "sslcrl", "sslpassword", "sslmode", "sslnegotiation", "ssl_min_protocol_version",
    "ssl_max_protocol_version", "target_session_attrs",
))  # fmt: skip
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRS = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
# They tune the socket or the session in ways that change nothing of what is promised here.
OF_NO_EFFECT = frozenset(
    {
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "sslcompression",
        "sslsni",
        "requirepeer",
        "fallback_application_name",
        "gsslib",
        "krbsrvname",
        "prepared_statement_cache_size",
        "statement_cache_size",
        "prepared_statements",
    }
)
WRITE_INSTEAD = {
    "hostaddr": "write the address as the host",
    "service": "write host, user and database into the URL",
    "replication": "leave it out: embedmill needs an ordinary connection",
    "require_auth": "leave it out, and write sslmode=verify-full to be sure of the server",
    "ssl_ca_certs": "write sslrootcert",
    "sslaccept": "write sslmode=verify-full, or sslmode=require where the certificate is not to be checked",
    "schema": "write options=-csearch_path=NAME",
    "connection_limit": "leave it out: a process opens up to 10 connections",
    "pool_timeout": "leave it out",
}
TLS_NAMES = {
    "ssl_cert_reqs": "cert_reqs",
    "ssl_ca_certs": "ca_certs",
    "ssl_certfile": "certfile",
    "ssl_keyfile": "keyfile",
    "ssl_check_hostname": "check_hostname",
    # As RabbitMQ's own clients write them.
    "cacertfile": "ca_certs",
    "certfile": "certfile",
    "keyfile": "keyfile",
    "verify": "cert_reqs",
}
CERT_REQS = {
    "required": True,
    "cert_required": True,
    "verify_peer": True,
    "none": False,
    "cert_none": False,
    "verify_none": False,
}


@dataclass(frozen=True, slots=True)
class PostgresTarget:
    """`dsn` is for asyncpg. `session` is SET once a connection is open: poolers refuse it in the startup packet."""

    dsn: str
    timeout_s: float | None = None
    application_name: str = "embedmill"
    session: Mapping[str, str] = field(default_factory=dict)
    startup_options: str = ""


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS options of a connection."""

    verified: bool = True
    check_hostname: bool = True
    ca_certs: str | None = None
    certfile: str | None = None
    keyfile: str | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A Redis or a broker."""

    scheme: str  # redis, unix or amqp
    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    database: str  # Redis's number, RabbitMQ's vhost
    path: str = ""  # of a Unix socket
    tls: Tls | None = None

    def redis_options(self) -> dict[str, Any]:
        """Keyword arguments of redis.asyncio.Redis."""
        options: dict[str, Any] = {"username": self.username, "password": self.password, "db": int(self.database or 0)}
        if self.scheme == "unix":
            return options | {"unix_socket_path": self.path}
        return options | {"host": self.host, "port": self.port, "ssl": self.tls is not None} | self._redis_tls()

    def celery_options(self) -> dict[str, Any]:
        """The settings of Celery that say where the broker is: `broker_url` and `broker_use_ssl`."""
        credentials = ""
        if self.username or self.password:
            credentials = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        if self.scheme == "unix":
            url = f"redis+socket://{credentials}{self.path}?virtual_host={self.database or 0}"
            return {"broker_url": url}
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = quote(self.database, safe="")
        if self.scheme == "redis":
            url = f"redis://{credentials}{host}:{self.port}/{path or 0}"
            return {"broker_url": url, "broker_use_ssl": self._redis_tls() or None}
        return {"broker_url": f"amqp://{credentials}{host}:{self.port}/{path}", "broker_use_ssl": self._amqp_tls()}

    def shown(self) -> str:
        """For people: without user, password and parameters."""
        scheme = self.scheme + ("s" if self.tls else "")
        return f"{scheme}://{self.path or f'{self.host}:{self.port}/{self.database}'}"

    def _redis_tls(self) -> dict[str, Any]:
        if self.tls is None:
            return {}
        return {
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.tls.verified else ssl.CERT_NONE,
            "ssl_check_hostname": self.tls.verified and self.tls.check_hostname,
            "ssl_ca_certs": self.tls.ca_certs,
            "ssl_certfile": self.tls.certfile,
            "ssl_keyfile": self.tls.keyfile,
        }

    def _amqp_tls(self) -> dict[str, Any] | None:
        if self.tls is None:
            return None
        options = {
            "cert_reqs": ssl.CERT_REQUIRED if self.tls.verified else ssl.CERT_NONE,
            "ca_certs": self.tls.ca_certs,
            "certfile": self.tls.certfile,
            "keyfile": self.tls.keyfile,
        }
        if self.tls.verified and self.tls.check_hostname:
            options["server_hostname"] = self.host
        return {name: value for name, value in options.items() if value is not None}


def postgres(url: str, name: str = "EMBEDMILL_DATABASE_URL") -> PostgresTarget:
    """Read a PostgreSQL URL. Raises ConfigError that names the parameter."""
    parts = _split(url, name)
    scheme, _, driver = parts.scheme.partition("+")
    if scheme not in POSTGRES_SCHEMES or (driver and driver not in POSTGRES_DRIVERS):
        raise ConfigError(f"{name} must start with postgresql:// or sqlite:///", param=name)
    _check_ports(parts.netloc.rpartition("@")[2], name)
    kept: dict[str, str] = {}
    session: dict[str, str] = {}
    timeout_s, application_name, startup_options = None, "embedmill", ""
    for key, value in _query(parts, name).items():
        lower = key.lower()
        if _keep_for_driver(kept, key, value, name):
            continue
        if lower in ("connect_timeout", "timeout", "command_timeout"):
            timeout_s = _seconds(value, key, name) if lower != "command_timeout" else timeout_s
        elif lower == "application_name":
            application_name = value
        elif lower == "options":
            session, startup_options = _options(value, name)
        elif lower == "client_encoding":
            _one_of(value.lower().replace("-", ""), ("utf8", "unicode", "auto"), key, name)
        elif lower in ("channel_binding", "gssencmode", "pgbouncer", "load_balance_hosts"):
            _harmless(lower, value.lower(), name)
        elif lower not in OF_NO_EFFECT:
            _refuse(key, WRITE_INSTEAD.get(lower, "it is no parameter of libpq that is known here"), name)
    if kept.get("sslmode") in ("verify-ca", "verify-full") or kept.get("sslrootcert"):
        kept["sslrootcert"] = _root_certificate(kept.get("sslrootcert", ""), name)
    dsn = f"postgresql://{parts.netloc}{parts.path}" + (f"?{urlencode(kept, quote_via=quote)}" if kept else "")
    return PostgresTarget(dsn, timeout_s, application_name, session, startup_options)


def _keep_for_driver(kept: dict[str, str], key: str, value: str, name: str) -> bool:
    """Add a parameter that asyncpg reads itself to `kept`. False: it is none. Raises ConfigError."""
    lower = key.lower()
    if lower in ("ssl", "sslmode"):
        kept["sslmode"] = _ssl_mode({"true": "require", "1": "require"}.get(value.lower(), value), key, name)
    elif lower == "requiressl":
        kept.setdefault("sslmode", "require" if value == "1" else "prefer")
    elif lower == "target_session_attrs":
        kept[lower] = _one_of(value, SESSION_ATTRS, key, name)
    elif lower in OF_DRIVER:
        kept[lower] = _existing(value, key, name) if lower in ("sslcert", "sslkey", "sslcrl") else value
    else:
        return False
    return True


def redis_or_broker(url: str, name: str) -> Target:
    """Read the URL of Redis, Valkey or RabbitMQ. Raises ConfigError that names the parameter."""
    parts = _split(url, name)
    scheme = SAME_SCHEMES.get(parts.scheme, parts.scheme)
    if scheme not in ("redis", "rediss", "unix", "amqp", "amqps"):
        allowed = "redis://, rediss:// or unix://" + ("" if name.endswith("REDIS_URL") else ", amqp:// or amqps://")
        if "sentinel" in scheme:
            raise ConfigError(f"{name}: sentinel is not supported: name the server or a proxy before it", param=name)
        raise ConfigError(f"{name} must start with {allowed}", param=name)
    is_amqp = scheme.startswith("amqp")
    if is_amqp and name.endswith("REDIS_URL"):
        raise ConfigError(f"{name} must be a Redis; RabbitMQ belongs into EMBEDMILL_BROKER_URL", param=name)
    if "," in parts.netloc.rpartition("@")[2]:
        raise ConfigError(
            f"{name} must name one host; put a proxy or a name with several addresses before them", param=name
        )
    database, tls_words = _broker_parameters(parts, scheme, name)
    database = (database or "/") if is_amqp else _redis_database(database, name)
    port = _port(parts, name)
    username = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if scheme == "unix":
        if not parts.path:
            raise ConfigError(f"{name} names no socket: write unix:///path/to/redis.sock", param=name)
        return Target("unix", "", 0, username, password, database, unquote(parts.path))
    tls = _tls(tls_words, name) if scheme in ("rediss", "amqps") else None
    default_port = (5671 if tls else 5672) if is_amqp else 6379
    host = parts.hostname or "127.0.0.1"
    if is_amqp and username is None:
        username = password = "guest"  # noqa: S105  # RabbitMQ's own default
    return Target("amqp" if is_amqp else "redis", host, port or default_port, username, password, database, "", tls)


def _broker_parameters(parts: SplitResult, scheme: str, name: str) -> tuple[str, dict[str, str]]:
    """The database or virtual host, and the TLS parameters. Raises ConfigError for a parameter that has no effect."""
    is_amqp = scheme.startswith("amqp")
    tls_words: dict[str, str] = {}
    database = unquote(parts.path.removeprefix("/")) if scheme != "unix" else ""
    for key, value in _query(parts, name).items():
        if key in TLS_NAMES and scheme in ("rediss", "amqps"):
            tls_words[TLS_NAMES[key]] = value
        elif key in TLS_NAMES:
            _refuse(key, f"it belongs to {scheme}s://", name)
        elif key in ("db", "virtual_host") and not is_amqp:
            database = value
        elif not (is_amqp and key in ("heartbeat", "connection_timeout")) and key not in ("protocol", "client_name"):
            _refuse(key, "leave it out: embedmill sets timeouts and the like itself", name)
    return database, tls_words


def _split(url: str, name: str) -> SplitResult:
    if "://" not in url:
        raise ConfigError(
            f"{name} must be a URL, as in postgresql://user@host/database or redis://host:6379/0", param=name
        )
    scheme, _, rest = url.partition("://")
    if "#" in rest:
        raise ConfigError(f"{name}: write a '#' of the password as %23", param=name)
    if rest.split("?")[0].count("@") > 1 or "/" in rest.split("?")[0].rpartition("@")[0]:
        raise ConfigError(f"{name}: write '@' and '/' of the password as %40 and %2F", param=name)
    try:
        return urlsplit(f"{scheme.lower()}://{rest}")
    except ValueError as error:
        raise ConfigError(f"{name} is no valid URL: check its host and brackets", param=name) from error


def _query(parts: SplitResult, name: str) -> dict[str, str]:
    try:
        return (
            dict(parse_qsl(parts.query.replace("+", "%2B"), strict_parsing=True, keep_blank_values=True))
            if parts.query
            else {}
        )
    except ValueError as error:
        raise ConfigError(f"{name}: what follows '?' must be name=value&name=value", param=name) from error


def _refuse(key: str, advice: str, name: str) -> None:
    raise ConfigError(f"{name}: the parameter {key} cannot be used: {advice}", param=name)


def _one_of(value: str, allowed: tuple[str, ...], key: str, name: str) -> str:
    if value not in allowed:
        _refuse(key, f"it must be one of {', '.join(allowed)}", name)
    return value


def _ssl_mode(value: str, key: str, name: str) -> str:
    return _one_of(value.lower().replace("no-verify", "require"), SSL_MODES, key, name)


def _seconds(value: str, key: str, name: str) -> float | None:
    if not value.isdigit():
        _refuse(key, "it must be a whole number of seconds", name)
    return max(2.0, float(value)) if int(value) else None  # libpq: 0 waits without end, 1 means 2


def _options(value: str, name: str) -> tuple[dict[str, str], str]:
    """libpq's `options`: what it sets, and the rest, which goes to the server as it is."""
    try:
        words = shlex.split(value)
    except ValueError:
        words = [value]
    session: dict[str, str] = {}
    rest: list[str] = []
    while words:
        word = words.pop(0)
        setting = words.pop(0) if word == "-c" and words else word[2:] if word.startswith(("-c", "--")) else ""
        key, separator, text = setting.partition("=")
        if separator and key.replace("_", "").replace(".", "").replace("-", "").isalnum():
            session[key.replace("-", "_")] = text
        elif setting:
            _refuse("options", "each setting must be -cNAME=VALUE", name)
        else:
            rest.append(word)
    return session, " ".join(rest)


def _harmless(key: str, value: str, name: str) -> None:
    """Parameters with one value that changes nothing here, and one that would have to be obeyed."""
    if key == "channel_binding" and value == "require":
        _refuse(key, "the driver has no channel binding; leave it out, and write sslmode=verify-full", name)
    if key == "gssencmode" and value == "require":
        _refuse(key, "the driver has no GSSAPI encryption; leave it out, and write sslmode=require", name)
    if key == "load_balance_hosts" and value != "disable":
        _refuse(key, "leave it out: there is one primary; write target_session_attrs=read-write", name)


def _root_certificate(value: str, name: str) -> str:
    if value not in ("", "system"):
        return _existing(value, "sslrootcert", name)
    if not value and (own := Path("~/.postgresql/root.crt").expanduser()).is_file():
        return str(own)
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, paths.openssl_cafile, "/etc/ssl/certs/ca-certificates.crt"):
        if path and Path(path).is_file():
            return path
    raise ConfigError(f"{name}: no certificates of the system were found: write sslrootcert=FILE", param=name)


def _existing(value: str, key: str, name: str) -> str:
    if not Path(value).is_file():
        _refuse(key, f"there is no file {value}", name)
    return value


def _check_ports(hosts: str, name: str) -> None:
    for host in hosts.split(","):
        port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
        if port and not (port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"{name}: the port must be a number below 65536", param=name)


def _port(parts: SplitResult, name: str) -> int | None:
    try:
        return parts.port
    except ValueError as error:
        raise ConfigError(f"{name}: the port must be a number below 65536", param=name) from error


def _redis_database(value: str, name: str) -> str:
    if value and not value.isdigit():
        raise ConfigError(f"{name}: Redis's databases have numbers, as in redis://host:6379/0", param=name)
    return value or "0"


def _tls(words: Mapping[str, str], name: str) -> Tls:
    reqs = words.get("cert_reqs", "required").lower()
    if reqs not in CERT_REQS:
        _refuse("ssl_cert_reqs", "it must be required or none", name)
    hostname = words.get("check_hostname", "true").lower()
    if hostname not in ("true", "false", "1", "0"):
        _refuse("ssl_check_hostname", "it must be true or false", name)
    files = {
        key: _existing(words[key], f"ssl_{key}", name) for key in ("ca_certs", "certfile", "keyfile") if key in words
    }
    return Tls(CERT_REQS[reqs], hostname in ("true", "1"), **files)
