"""What is wrong with a broker or a connection, by what the clients raise, and in no word of theirs."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest
import redis
from amqp import exceptions as amqp
from kombu.exceptions import OperationalError
from redis._parsers.base import BaseParser

from engine.connections.broker_faults import UNKNOWN, broker_fault, names_of
from engine.connections.connection_faults import BROKER, DATABASE, REDIS, connection_fault
from engine.storage.sqlstates import Verdict, meaning_of, translated
from models.errors import StorageUnavailable

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory is used up"),
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to", "cannot save"),
        ("READONLY You can't write against a read only replica.", "is a replica"),
        ("LOADING Redis is loading the dataset in memory", "loading"),
        ("NOREPLICAS Not enough good replicas to write.", "too few replicas"),
        ("NOAUTH Authentication required.", "wants a password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "refuses the user"),
        ("NOPERM this user has no permissions to run the 'eval' command", "may not do this"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", "another program"),
        ("MOVED 3999 127.0.0.1:6381", "is a cluster"),
        ("ERR unknown command 'EVALSHA'", "refuses a command"),
        ("SOMETHINGNEW of a later version", "refuses a command"),
    ],
)
def test_redis_is_read_by_its_code(reply: str, cause: str) -> None:
    raised = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    wrapped = OperationalError(SECRET)
    wrapped.__cause__ = raised
    for error in (raised, wrapped):
        fault = broker_fault(error, REDIS)
        assert cause in fault.cause and fault.advice
        assert SECRET not in f"{fault}" and "{" not in f"{fault.cause}{fault.advice}"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (amqp.AccessRefused(SECRET), "refuses the user"),
        (amqp.NotAllowed(SECRET), "no such virtual host"),
        (amqp.PreconditionFailed(SECRET), "other settings"),
        (redis.exceptions.TimeoutError(SECRET), "does not answer"),
        (ConnectionRefusedError(errno.ECONNREFUSED, SECRET), "nothing listens"),
        (ConnectionResetError(errno.ECONNRESET, SECRET), "closed the connection"),
        (socket.gaierror(-2, SECRET), "cannot be resolved"),
        (TimeoutError(SECRET), "did not answer in time"),
        (ssl.SSLError(1, SECRET), "TLS failed"),
        (FileNotFoundError(errno.ENOENT, SECRET), "socket does not exist"),
    ],
)
def test_connections_are_read_by_class_and_number(error: Exception, cause: str) -> None:
    fault = broker_fault(error, BROKER)
    assert cause in fault.cause and fault.advice
    assert SECRET not in f"{fault}" and "{" not in f"{fault.cause}{fault.advice}"


@pytest.mark.parametrize(
    ("code", "cause"), [(20, "not trusted"), (10, "expired"), (62, "another name"), (64, "for ano")]
)
def test_what_is_wrong_with_a_certificate_is_told(code: int, cause: str) -> None:
    error = ssl.SSLCertVerificationError(1, SECRET)
    error.verify_code = code
    for names in (DATABASE, REDIS, BROKER):
        fault = connection_fault(error, names)
        assert fault is not None and cause in fault.cause and fault.advice
    not_trusted = ssl.SSLCertVerificationError(1, SECRET)
    not_trusted.verify_code = 18
    assert "sslrootcert in EMBEDMILL_DATABASE_URL" in getattr(connection_fault(not_trusted, DATABASE), "advice", "")
    assert "ssl_ca_certs in EMBEDMILL_BROKER_URL" in broker_fault(not_trusted, names_of("amqps://x")).advice


def test_an_error_of_nobody_we_know_is_not_guessed_at() -> None:
    assert broker_fault(RuntimeError(SECRET), REDIS) is UNKNOWN
    assert connection_fault(OSError(errno.EDOM, SECRET), DATABASE) is None


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, SECRET), "nothing listens there"),
        (socket.gaierror(-2, SECRET), "name cannot be resolved"),
        (ssl.SSLCertVerificationError(1, SECRET), "not trusted"),
        (ConnectionError(SECRET), "breaks the connection off"),
    ],
)
def test_a_database_that_cannot_be_reached_is_away_and_says_why(error: Exception, cause: str) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_code = 20
    meaning, ours = meaning_of(error), translated(error)
    assert meaning is not None and meaning.verdict is Verdict.AWAY and meaning.session_is_unfit
    assert type(ours) is StorageUnavailable and cause in ours.message and ours.advice and ours.retry_after_s
    assert SECRET not in f"{ours.message}{ours.advice}"
