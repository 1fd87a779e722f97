"""What a database's refusal means, by its SQLSTATE or its SQLite code."""

from __future__ import annotations

import sqlite3
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from engine.storage.sqlstates import Verdict, meaning_of, translated
from models.errors import StorageBlocked, StorageRefused, StorageUnavailable

AWAY = [
    "08000",
    "08001",
    "08003",
    "08004",
    "08006",
    "08P01",
    "25006",
    "25P03",
    "40001",
    "40P01",
    "53000",
    "53100",
    "53200",
    "53300",
    "53400",
    "55000",
    "55006",
    "55P03",
    "57000",
    "57014",
    "57P01",
    "57P02",
    "57P03",
    "57P04",
    "57P05",
    "58000",
    "58030",
    "58P01",
    "XX000",
    "XX001",
    "XX002",
    "0A000",
]
BLOCKED = ["28000", "28P01", "3D000", "3F000", "42501", "42703", "42P01", "42883", "42704"]
REFUSED = ["22001", "22003", "22021", "22P02", "22P05", "23502", "23503", "23505", "23514", "54000", "P0001"]
OURS = ["42601", "25P02", "26000", "34000", "99999"]


class OfDriver(Exception):
    def __init__(self, **attributes: Any) -> None:
        super().__init__("it quotes a secret")
        for name, value in attributes.items():
            setattr(self, name, value)


def wrapped(error: Exception) -> DBAPIError:
    return DBAPIError("insert into secrets", ("em_secret",), error)


@pytest.mark.parametrize("state", AWAY)
def test_states_that_pass_by_themselves_are_an_outage(state: str) -> None:
    error = translated(wrapped(OfDriver(sqlstate=state)))
    assert type(error) is StorageUnavailable and error.retry_after_s and state in str(error)


@pytest.mark.parametrize("state", BLOCKED)
def test_states_that_an_operator_mends_say_what_to_do(state: str) -> None:
    error = translated(wrapped(OfDriver(sqlstate=state)))
    assert isinstance(error, StorageBlocked) and error.advice and error.retry_after_s


@pytest.mark.parametrize("state", REFUSED)
def test_values_that_never_fit_are_refused_for_good(state: str) -> None:
    error = translated(wrapped(OfDriver(sqlstate=state)))
    assert isinstance(error, StorageRefused) and "database" in error.message and state in error.message


@pytest.mark.parametrize("state", OURS)
def test_faults_of_ours_stay_what_they_are(state: str) -> None:
    given = wrapped(OfDriver(sqlstate=state))
    assert translated(given) is given


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Verdict.AWAY),
        (sqlite3.SQLITE_READONLY_DBMOVED, Verdict.AWAY),
        (sqlite3.SQLITE_FULL, Verdict.AWAY),
        (sqlite3.SQLITE_IOERR_WRITE, Verdict.AWAY),
        (sqlite3.SQLITE_CANTOPEN_ISDIR, Verdict.AWAY),
        (sqlite3.SQLITE_CORRUPT_INDEX, Verdict.AWAY),
        (sqlite3.SQLITE_NOTADB, Verdict.AWAY),
        (sqlite3.SQLITE_ERROR, Verdict.BLOCKED),
        (sqlite3.SQLITE_CONSTRAINT_NOTNULL, Verdict.REFUSED),
        (sqlite3.SQLITE_TOOBIG, Verdict.REFUSED),
        (sqlite3.SQLITE_MISUSE, Verdict.OURS),
    ],
)
def test_extended_codes_of_sqlite_mean_what_their_primary_one_does(code: int, verdict: Verdict) -> None:
    meaning = meaning_of(wrapped(OfDriver(sqlite_errorcode=code)))
    assert meaning is not None and meaning.verdict is verdict


@pytest.mark.parametrize(
    "refusal", [OverflowError("int too large"), asyncpg.DataError("value out of int32 range"), "\ud83d".encode]
)
def test_values_that_a_driver_refuses_are_no_outage(refusal: Any) -> None:
    if callable(refusal):
        with pytest.raises(UnicodeEncodeError) as caught:
            refusal("utf-8")
        refusal = caught.value
    assert isinstance(translated(refusal), StorageRefused)
    assert isinstance(translated(wrapped(refusal)), StorageRefused)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("peer"),
        TimeoutError(),
        PoolTimeout("QueuePool limit"),
        InvalidRequestError("This connection is closed"),
        wrapped(asyncpg.InterfaceError("connection is closed")),
    ],
)
def test_a_connection_that_is_gone_is_an_outage(error: Exception) -> None:
    assert type(translated(error)) is StorageUnavailable


def test_other_errors_are_not_the_databases() -> None:
    for error in (KeyError("x"), ValueError("x"), InvalidRequestError("a closed transaction")):
        assert translated(error) is error


def test_no_message_quotes_a_statement_its_values_or_the_driver() -> None:
    for state in (*AWAY, *BLOCKED, *REFUSED):
        assert "secret" not in str(translated(wrapped(OfDriver(sqlstate=state))))


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.exceptions.InterfaceError("cannot call Transaction.__aexit__(): the underlying connection is closed"),
        asyncpg.exceptions.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
        asyncpg.exceptions.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.exceptions.ProtocolError("unexpected message"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_drivers_own_errors_are_an_outage_also_where_the_dialect_does_not_wrap_them(error: Exception) -> None:
    """A connection that is cut while the pool prepares it."""
    meaning = meaning_of(error)
    assert meaning is not None and (meaning.verdict, meaning.session_is_unfit) == (Verdict.AWAY, True)
    assert isinstance(translated(error), StorageUnavailable)
