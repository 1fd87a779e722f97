"""Meaning of database errors: a table from SQLSTATE (PostgreSQL) and result code (SQLite) to our errors.

Sources: PostgreSQL 17, appendix A "PostgreSQL Error Codes"; SQLite, "Result and Error Codes" (both read 2025-11).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from engine.connections.connection_faults import DATABASE, connection_fault
from models.errors import EmbedmillError, StorageBlocked, StorageRefused, StorageUnavailable

RETRY_AFTER_S = 2.0
BLOCKED_RETRY_AFTER_S = 10.0


class Verdict(StrEnum):
    """The consequence of an error."""

    AWAY = "away"  # passes by itself: the same statement succeeds later
    BLOCKED = "blocked"  # the same statement succeeds once an operator has acted
    REFUSED = "refused"  # the values can never be stored
    OURS = "ours"  # a fault of this program


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a database error means for the caller: the class of error, its cause, and advice for the operator."""

    verdict: Verdict
    cause: str
    advice: str = ""
    # True where the session, not the statement, is unfit: the pool must open another, perhaps to another server.
    session_is_unfit: bool = False


def _away(cause: str, advice: str = "", *, session: bool = False) -> Meaning:
    return Meaning(Verdict.AWAY, cause, advice, session)


MIGRATE = "run `embedmill migrate` with this version"
# The longest key that fits wins: a state of five characters, else its class of two.
SQLSTATES: dict[str, Meaning] = {
    "08": _away("the connection broke", session=True),
    "0A000": _away("the tables changed under a prepared statement", session=True),
    "21": Meaning(Verdict.OURS, "a statement is wrong"),
    "22": Meaning(Verdict.REFUSED, "a value does not fit its column"),
    "23": Meaning(Verdict.REFUSED, "a constraint forbids the row"),
    "25006": _away("it is read-only", "make it writable, or point EMBEDMILL_DATABASE_URL at the primary", session=True),
    "25P03": _away("a transaction was idle for too long", session=True),
    "25P04": _away("a transaction took too long", session=True),
    "28P01": Meaning(
        Verdict.BLOCKED, "it rejects the login", "correct user and password in EMBEDMILL_DATABASE_URL", True
    ),
    "28": Meaning(
        Verdict.BLOCKED,
        "it does not let this user in",
        "see that the user exists, and that pg_hba.conf admits it to this database from this machine; "
        "where it demands TLS, write sslmode=require into EMBEDMILL_DATABASE_URL",
        True,
    ),
    "3D000": Meaning(
        Verdict.BLOCKED, "the database does not exist", "create it, or correct EMBEDMILL_DATABASE_URL", True
    ),
    "3F000": Meaning(Verdict.BLOCKED, "the schema does not exist", MIGRATE),
    "40": _away("the transaction was rolled back"),
    "42501": Meaning(
        Verdict.BLOCKED, "the role lacks a privilege", "grant it on all tables to the role of EMBEDMILL_DATABASE_URL"
    ),
    "42601": Meaning(Verdict.OURS, "a statement is wrong"),
    "42": Meaning(Verdict.BLOCKED, "a table, column or function is missing or differs", MIGRATE),
    "53100": _away("its disk is full", "free space on the database server"),
    "53200": _away("it is out of memory", "give the database server more memory"),
    "53300": _away("it has no connection left", "raise max_connections, or use a pooler"),
    "53": _away("it is out of resources"),
    "54": Meaning(Verdict.REFUSED, "a limit of the database is exceeded"),
    "55000": _away(
        "it does not accept connections now", "wait for its recovery, or let the database accept them", session=True
    ),
    "55P03": _away("a lock could not be had in time"),
    "55": _away("an object is in use"),
    "57014": _away("a statement took too long"),
    "57": _away("an operator or a restart ended the session", session=True),
    "58": _away("its disk or operating system fails", "look at the database server's log", session=True),
    "P0": Meaning(Verdict.REFUSED, "a trigger or function of the database raised an error"),
    "XX": _away("it reports an internal error", "look at the database server's log", session=True),
}
# By the primary result code.
SQLITE_CODES: dict[int, Meaning] = {
    sqlite3.SQLITE_BUSY: _away("another process holds its lock for too long"),
    sqlite3.SQLITE_LOCKED: _away("another connection holds its lock for too long"),
    sqlite3.SQLITE_READONLY: _away("it is read-only", "make the file and its folder writable", session=True),
    sqlite3.SQLITE_FULL: _away("its disk is full", "free space on the disk of EMBEDMILL_DATA_DIR"),
    sqlite3.SQLITE_IOERR: _away("its disk fails", "check the disk of EMBEDMILL_DATA_DIR", session=True),
    sqlite3.SQLITE_CANTOPEN: _away("its file cannot be opened", "check path and permissions", session=True),
    sqlite3.SQLITE_PERM: _away("its file may not be opened", "check its permissions", session=True),
    sqlite3.SQLITE_AUTH: _away("its file may not be opened", "check its permissions", session=True),
    sqlite3.SQLITE_CORRUPT: _away("its file is damaged", "restore it from a backup", session=True),
    sqlite3.SQLITE_NOTADB: _away("its file is no database", "restore it from a backup", session=True),
    sqlite3.SQLITE_PROTOCOL: _away("its lock protocol failed"),
    sqlite3.SQLITE_NOMEM: _away("the machine is out of memory"),
    sqlite3.SQLITE_INTERRUPT: _away("the statement was interrupted"),
    sqlite3.SQLITE_SCHEMA: _away("the tables changed under a statement", session=True),
    sqlite3.SQLITE_ERROR: Meaning(Verdict.BLOCKED, "a table or column is missing or differs", MIGRATE),
    sqlite3.SQLITE_CONSTRAINT: Meaning(Verdict.REFUSED, "a constraint forbids the row"),
    sqlite3.SQLITE_MISMATCH: Meaning(Verdict.REFUSED, "a value does not fit its column"),
    sqlite3.SQLITE_TOOBIG: Meaning(Verdict.REFUSED, "a value is too large"),
}
NO_ANSWER = _away("it does not answer", session=True)
UNSTORABLE = Meaning(Verdict.REFUSED, "a value does not fit its column")
FAULT = Meaning(Verdict.OURS, "a statement is wrong")


def state_of(error: BaseException) -> str:
    """The error's SQLSTATE or the name of SQLite's result code; empty where the database did not give one."""
    for each in _chain(error):
        if state := getattr(each, "sqlstate", None) or getattr(each, "sqlite_errorname", None):
            return str(state)
    return ""


def meaning_of(error: BaseException) -> Meaning | None:
    """The meaning of the error; None when no database raised it."""
    for each in _chain(error):
        if isinstance(state := getattr(each, "sqlstate", None), str) and state:
            return SQLSTATES.get(state) or SQLSTATES.get(state[:2]) or FAULT
        if isinstance(code := getattr(each, "sqlite_errorcode", None), int):
            return SQLITE_CODES.get(code & 0xFF, FAULT)
    # What drivers raise before the database is asked.
    chain = list(_chain(error))
    if any(isinstance(each, OverflowError | UnicodeError) or _is_client_refusal(each) for each in chain):
        return UNSTORABLE
    if any(isinstance(each, OSError) for each in chain) and (fault := connection_fault(error, DATABASE)):
        return _away(fault.cause, fault.advice, session=True)
    no_answer = (PoolTimeout, OSError, sqlite3.OperationalError)
    if any(isinstance(each, no_answer) or _is_of_asyncpg(each) for each in chain):
        return NO_ANSWER
    if not isinstance(error, SQLAlchemyError):
        return None
    # "This connection is closed": the pool's, after it could not replace a connection that had gone.
    lost = isinstance(error, InvalidRequestError) and "connection is closed" in str(error)
    return NO_ANSWER if lost or isinstance(error, DBAPIError) else FAULT


def translated(error: Exception) -> Exception:
    """The error of ours that a database's error becomes; the error itself where it is a fault of this program."""
    if isinstance(error, EmbedmillError) or (meaning := meaning_of(error)) is None or meaning.verdict is Verdict.OURS:
        return error
    state = state_of(error)
    message = f"the database cannot be used: {meaning.cause}" if meaning is not NO_ANSWER else NO_ANSWER_MESSAGE
    if meaning.verdict is Verdict.REFUSED:
        message = f"the database refused to store this: {meaning.cause}"
    message += f" ({state})" if state else ""
    if meaning.verdict is Verdict.REFUSED:
        return StorageRefused(message)
    if meaning.verdict is Verdict.BLOCKED:
        return StorageBlocked(message, retry_after_s=BLOCKED_RETRY_AFTER_S, advice=meaning.advice)
    return StorageUnavailable(message, retry_after_s=RETRY_AFTER_S, advice=meaning.advice)


NO_ANSWER_MESSAGE = "the database does not answer"


def _is_of_asyncpg(error: BaseException) -> bool:
    """True for the driver's own errors, as of a connection that was cut. The dialect does not wrap all of them.

    An error of the server has a SQLSTATE.
    """
    return type(error).__module__.partition(".")[0] == "asyncpg"


def _is_client_refusal(error: BaseException) -> bool:
    # asyncpg checks values before it sends them: its DataError is an InterfaceError and a ValueError.
    return isinstance(error, ValueError) and type(error).__qualname__ == "DataError"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: SQLAlchemy's, its dialect's and the driver's own."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = getattr(current, "orig", None) or current.__cause__
