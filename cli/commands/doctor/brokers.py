"""The doctor's check of Redis and the broker, with a result within seconds whatever answers there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cli.commands.doctor.finding import Finding
from cli.redaction import redact_url
from engine.config.settings import Settings
from engine.connections.broker_faults import broker_fault, names_of
from engine.connections.connection_faults import ConnectionFault

if TYPE_CHECKING:
    from engine.config.settings import Settings
    from engine.connections.urls import Target

BROKER_S = 3.0
GREETING_S = 1.0
WRITTEN_KEY = "embedmill:doctor"
SCHEMES = "redis:// rediss:// or amqp://"
NO_BROKER_FIX = "start `embedmill up`, or set EMBEDMILL_REDIS_URL"
REDIS, TLS, AMQP = "Redis", "TLS", "AMQP"


def no_broker(settings: Settings) -> str:
    """Why there is no broker: none is configured, and the `embedmill up` that would bring one does not run."""
    folder = settings.data_dir.absolute()
    return f"none is configured, and `embedmill up`, which brings one, is not running on {folder}"


def client_options() -> dict[str, Any]:
    """Options for one attempt: by default the library retries a silent Redis for 45 s."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return {"socket_timeout": BROKER_S, "socket_connect_timeout": BROKER_S, "retry": Retry(NoBackoff(), 0)}


def broker(settings: Settings) -> Finding:
    """Whether the broker, and the Redis of the quotas, can be used."""
    if not settings.broker:
        return Finding("broker", "warn", no_broker(settings), NO_BROKER_FIX)
    redacted = redact_url(settings.broker)
    if fault := find_broker_fault(settings.broker):
        return Finding("broker", "fail", f"{redacted}: {fault.cause}", fault.advice)
    if settings.redis and settings.redis != settings.broker and (fault := find_broker_fault(settings.redis)):
        return Finding("broker", "fail", f"{redact_url(settings.redis)}: {fault.cause}", fault.advice)
    return Finding("broker", "ok", redacted)


def find_broker_fault(url: str) -> ConnectionFault | None:
    """The fault of a broker and its fix, found by a connection; None when there is none."""
    scheme = urlsplit(url).scheme
    if "://" not in url or not scheme:
        return ConnectionFault("its URL has no scheme", f"begin it with {SCHEMES}")
    if scheme.startswith(("redis", "valkey")) or scheme == "unix":
        return _redis_fault(url)
    if scheme.startswith("amqp"):
        return _rabbitmq_fault(url)
    return ConnectionFault(f"{scheme}:// is no broker that is known here", f"use {SCHEMES}")


def _redis_fault(url: str) -> ConnectionFault | None:
    import redis

    from engine.connections.urls import redis_or_broker

    target = redis_or_broker(url, "EMBEDMILL_REDIS_URL")
    try:
        with redis.Redis(**target.redis_options(), **client_options()) as client:
            client.set(WRITTEN_KEY, "", px=1000)  # one that answers may still refuse to write
    except (redis.exceptions.RedisError, OSError) as error:
        return _protocol_mismatch(target) or broker_fault(error, names_of(url))
    return None


def _rabbitmq_fault(url: str) -> ConnectionFault | None:
    from celery import Celery

    from engine.connections.urls import redis_or_broker
    from engine.queue.broker import BROKER_ERRORS

    target = redis_or_broker(url, "EMBEDMILL_BROKER_URL")
    try:
        app = Celery(set_as_current=False)
        app.conf.update(**target.celery_options())
        with app.connection(connect_timeout=BROKER_S) as connection:
            # Without the pause of `connect()` between its two tries.
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
    except BROKER_ERRORS as error:
        return _protocol_mismatch(target) or broker_fault(error, names_of(url))
    return None


def _protocol_mismatch(target: Target) -> ConnectionFault | None:
    """The fault when another protocol answers than the URL names; None when that is unknown."""
    greeting = _greeting(target)
    if target.tls is not None and greeting in (REDIS, AMQP):
        plain = target.scheme
        return ConnectionFault(
            "the server does not speak TLS", f"write {plain}:// instead of {plain}s://, or name its TLS port"
        )
    if target.tls is None and greeting == TLS:
        return ConnectionFault("the server speaks TLS", f"write {target.scheme}s:// instead of {target.scheme}://")
    if target.scheme == "redis" and greeting == AMQP:
        return ConnectionFault(
            "it is a RabbitMQ, not a Redis", "write amqp://user:PASSWORD@host:5672/vhost in EMBEDMILL_BROKER_URL"
        )
    if target.scheme == "amqp" and greeting == REDIS:
        return ConnectionFault("it is a Redis, not a RabbitMQ", "write redis://host:6379/0")
    return None


def _greeting(target: Target) -> str | None:
    """Which of the three answers a line of Redis's protocol on the target's port; None: no other does."""
    if target.path:
        return None
    try:
        with socket.create_connection((target.host, target.port), timeout=GREETING_S) as connection:
            connection.settimeout(GREETING_S)
            connection.sendall(b"PING\r\n\r\n")
            greeting = connection.recv(16)
    except OSError:
        return None
    if greeting.startswith((b"+", b"-")):
        return REDIS
    if greeting.startswith(b"AMQP"):
        return AMQP
    return TLS if greeting.startswith(b"\x15\x03") else None  # an alert: it took the line for the begin of a handshake
