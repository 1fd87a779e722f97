"""Common parts of all tables: names, ids, instants and money.

Instants are unix seconds (float) by the database's clock, and money is whole picodollars, so that one SQL text adds
and compares both on SQLite and PostgreSQL (docs/decisions/0003-instants-and-money.md).
"""

from __future__ import annotations

import os
import random
import secrets
import time
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, Dialect, Double, Float, LargeBinary, MetaData
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.sql.functions import GenericFunction
from sqlalchemy.types import TypeDecorator

PICO = Decimal("1e12")
PICODOLLAR = 1 / PICO

# Constraint names must be the same on both databases, so that migrations can drop them by name.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base class of all tables."""

    metadata = MetaData(naming_convention=NAMING)


class Usd(TypeDecorator[Decimal]):
    """An exact amount of US dollars, kept as a whole number of picodollars (1e-12 USD)."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int((value * PICO).to_integral_value())

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / PICO


Instant = Double
Blob = LargeBinary


class db_now(FunctionElement[float]):  # noqa: N801  # reads as the SQL function it is
    """The database's clock as unix seconds: the only clock of leases and due times."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _now_postgresql(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    # A subquery is evaluated once per statement, so an index can be used; the bare function is evaluated for every row.
    return "(select extract(epoch from clock_timestamp())::float8)"


@compiles(db_now, "sqlite")
def _now_sqlite(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


class least(GenericFunction[int]):  # noqa: N801  # reads as the SQL function it is
    """The lesser of two numbers, neither of which is NULL."""

    type = BigInteger()
    inherit_cache = True


class greatest(GenericFunction[int]):  # noqa: N801  # reads as the SQL function it is
    """The greater of two numbers, neither of which is NULL."""

    type = BigInteger()
    inherit_cache = True


@compiles(least, "sqlite")
@compiles(greatest, "sqlite")
def _extreme_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    return f"{'min' if isinstance(element, least) else 'max'}{compiler.process(element.clause_expr, **kw)}"


def new_id(prefix: str) -> str:
    """A new id: prefix and 32 hex digits; 48 bits of milliseconds, then 80 random bits, so ids sort by age."""
    return f"{prefix}_{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


_quick = random.Random(secrets.randbits(256))  # never for anything that must not be guessed


def random_id(prefix: str) -> str:
    """A random id of a request or a record: prefix and 32 hex digits, without a system call. Not a secret."""
    return f"{prefix}_{_quick.getrandbits(128):032x}"


def _reseed() -> None:
    _quick.seed(secrets.randbits(256))


# Two children of one process must not generate the same ids.
os.register_at_fork(after_in_child=_reseed)


def usd_text(amount: Decimal) -> str:
    """A plain decimal string without exponent or trailing zeros: '0.00000012', '0'."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
