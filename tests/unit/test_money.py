"""Money: exact, whole picodollars in the database, plain decimal text at the edge."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from engine.ledger.call_cost import with_cost
from models.base import Usd, new_id, usd_text
from models.embedding import Batch, Call, Options
from models.usage import UsageKind
from tests.fakes import route

amounts = st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=12)
DIALECT = sqlite.dialect()


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0"),
        ("0E-12", "0"),
        ("0.000", "0"),
        ("0.00000012", "0.00000012"),
        ("1.2E-7", "0.00000012"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("0.0246000", "0.0246"),
        ("12.50", "12.5"),
    ],
)
def test_money_is_written_plainly(amount: str, text: str) -> None:
    assert usd_text(Decimal(amount)) == text


@given(amounts)
def test_what_is_written_reads_back(amount: Decimal) -> None:
    text = usd_text(amount)
    assert Decimal(text) == amount and re.fullmatch(r"\d+(\.\d*[1-9])?", text)


@given(amounts)
def test_the_database_keeps_every_picodollar(amount: Decimal) -> None:
    stored = Usd().process_bind_param(amount, DIALECT)
    assert isinstance(stored, int) and stored == amount * 10**12
    assert Usd().process_result_value(stored, DIALECT) == amount


@given(st.lists(st.tuples(st.integers(1, 10**6), amounts), max_size=20))
def test_the_sum_of_what_is_stored_is_what_is_stored_of_the_sum(calls: list[tuple[int, Decimal]]) -> None:
    usd = Usd()
    costs = [Decimal(tokens) * price.quantize(Decimal("0.000001")) / 1_000_000 for tokens, price in calls]
    stored = [usd.process_bind_param(cost, DIALECT) or 0 for cost in costs]
    assert sum(stored) == usd.process_bind_param(sum(costs, Decimal(0)), DIALECT)


def test_no_amount_stays_none() -> None:
    assert Usd().process_bind_param(None, DIALECT) is None and Usd().process_result_value(None, DIALECT) is None


def test_ids_are_alike_unlike_and_in_order() -> None:
    ids = [new_id("job") for _ in range(200)]
    assert all(re.fullmatch("job_[0-9a-f]{32}", each) for each in ids) and len(set(ids)) == 200
    assert [each[:16] for each in ids] == sorted(each[:16] for each in ids)


@pytest.mark.parametrize(
    ("kind", "reported", "tokens", "cost_usd"),
    [
        # At most a token for each of 12 bytes and 16 around them, at $ 0.02 per million.
        (UsageKind.AMBIGUOUS, None, 3, "0.00000056"),
        (UsageKind.WASTED, None, 3, "0.00000006"),
        (UsageKind.WASTED, 5, 5, "0.0000001"),
    ],
)
def test_a_call_without_use_is_charged_as_reported_or_estimated_or_at_its_highest_cost(
    kind: UsageKind, reported: int | None, tokens: int, cost_usd: str
) -> None:
    batch = Batch(["twelve bytes"], [0], 3, 16, Options())
    call = with_cost(Call("up", "m", False, None, 0.0, 0.0), kind, batch, route(), reported)
    assert (call.tokens, call.tokens_estimated, call.cost_usd) == (tokens, reported is None, Decimal(cost_usd))
    assert (call.wasted, call.ambiguous) == (kind is UsageKind.WASTED, kind is UsageKind.AMBIGUOUS)
