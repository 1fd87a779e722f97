"""A ledger row carries the price that its cost is by: of any kind, of jobs and of sync calls."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from engine.durability.call_journal import CallJournal, InFlightCall
from engine.durability.spool import Spool
from engine.jobs.recording.orphaned_calls import record_orphaned_calls
from engine.jobs.recording.record_outcomes import record
from engine.jobs.recording.spool_replay import decode_spool, encode_spool
from engine.ledger.usage_buffer import UsageBuffer, replay
from engine.ledger.usage_rows import delivered
from engine.storage.database import Database
from models.embedding import BatchOutcome
from models.usage import UsageRecord
from tests.fakes import FakeWire, fake
from tests.gateway import close_gateway, open_gateway
from tests.integration.store import Store, landed
from tests.integration.test_run import scripted
from tests.running import run_shard

PRICE = Decimal("0.0123457")  # of the store's configuration
SYNC_CONFIG = """
[providers.up]
kind = "openai"
base_url = "http://up/v1"
[models.tiny]
dimensions = 16
input_usd_per_million_tokens = "0.000000000001"
routes = [{ provider = "up", model = "m" }]
"""


async def ledger(store: Store) -> list[Any]:
    async with store.runtime.database.read() as connection:
        return list((await connection.execute(select(*UsageRecord.__table__.columns))).all())


@pytest.mark.parametrize(
    ("trouble", "kind"), [('fault = "close"', "ambiguous"), ('reply = "nan"', "wasted")], ids=["cut off", "refused"]
)
async def test_rows_of_a_job_carry_the_price(database_url: str, tmp_path: Path, trouble: str, kind: str) -> None:
    store = scripted(database_url, tmp_path, f"{{when = {{call = 1}}, do = {{{trouble}}}}}")
    job_id = await store.submit(4)
    await run_shard(store.runtime, (await store.shard_ids(job_id))[0], "w")
    assert await store.status(job_id) == "completed"
    rows = await ledger(store)
    assert {row.kind for row in rows} == {"delivered", kind}
    assert {row.usd_per_million_tokens for row in rows} == {PRICE}
    for row in rows:
        if row.kind != "ambiguous":  # whose cost is an upper bound
            assert row.cost_usd == (PRICE * row.prompt_tokens / 1_000_000).quantize(Decimal("1e-12"))
    await store.close()


async def test_calls_of_a_killed_process_carry_the_price_where_the_journal_has_it(store: Store) -> None:
    job_id = await store.submit()
    old = ("p", job_id, "shard", 1, "one", "m", 1, time.time(), 7, Decimal("0.5"), "")
    journal = CallJournal(store.runtime.journal.folder)
    journal.begin(InFlightCall("call_old", *old))
    journal.begin(InFlightCall("call_new", *old, usd_per_million_tokens=Decimal("0.02")))
    journal.close()
    assert await record_orphaned_calls(store.jobs, store.runtime.journal) == 2
    prices = {row.id: row.usd_per_million_tokens for row in await ledger(store)}
    assert prices == {"call_old": None, "call_new": Decimal("0.02")}


async def test_spooled_results_keep_their_price_and_those_of_an_earlier_release_have_none(store: Store) -> None:
    job_id = await store.submit(8)
    [held] = await store.claim_all(job_id)
    parts = landed(held, route=store.routes[0])
    assert len(parts) == 2
    stored = encode_spool(held, parts, "use_1")
    shard, same, record_id, _ = decode_spool(stored)
    assert len({id(part.route) for part in same}) == 1
    await record(store.jobs, shard, same[:1], record_id)
    await record(store.jobs, shard, _as_before_0014(stored)[1:], "use_2")
    rows = sorted(await ledger(store), key=lambda row: row.id)
    assert [(row.id, row.usd_per_million_tokens) for row in rows] == [("use_1.0", PRICE), ("use_2.0", None)]


def _as_before_0014(stored: bytes) -> list[BatchOutcome]:
    """The outcomes of a spool file as a release wrote it that knew no prices."""
    document = msgspec.msgpack.decode(stored)
    for part in document["parts"]:
        del part["usd_per_million_tokens"]
    return decode_spool(msgspec.msgpack.encode(document))[1]


async def test_two_prices_of_one_route_are_two_rows(store: Store) -> None:
    cheap = store.routes[0]
    dear = replace(cheap, usd_per_million_tokens=Decimal(3))
    parts = [BatchOutcome([0], None, None, 1_000_000, False, r.usd_per_million_tokens, r) for r in (cheap, dear, dear)]
    rows = delivered(parts, project="p", key_id="k", lane="bulk", alias="a", row_id="use_1.")
    assert [(row["id"], row["usd_per_million_tokens"], row["cost_usd"]) for row in rows] == [
        ("use_1.0", PRICE, PRICE),
        ("use_1.1", Decimal(3), Decimal(6)),
    ]


async def test_rows_of_sync_calls_keep_the_price_through_the_spool(store: Store, tmp_path: Path) -> None:
    part = BatchOutcome([0], None, None, 1, False, Decimal(0), store.routes[0])
    rows = delivered([part], project="p", key_id="k", lane="interactive", alias="a")
    spool = Spool(tmp_path / "usage of a test", max_bytes=1 << 20)
    away = Database("sqlite+aiosqlite:////nowhere/at/all.db")
    buffer = UsageBuffer(away, spool)
    buffer.add(rows)
    await buffer.close()
    await away.close()
    assert await replay(store.runtime.database, spool) == 1
    assert [row.usd_per_million_tokens for row in await ledger(store)] == [PRICE]


@pytest.mark.parametrize(("do", "kind"), [({}, "delivered"), ({"reply": "zero"}, "wasted")])
async def test_rows_of_a_sync_call_carry_the_price_to_the_picodollar(
    data_dir: Path, do: dict[str, Any], kind: str
) -> None:
    gateway = await open_gateway(data_dir, config=SYNC_CONFIG, wire=FakeWire(up=fake({"do": do})))
    await gateway.embed(["text"])
    await gateway.runtime.usage.flush()
    async with gateway.runtime.database.read() as connection:
        rows = (await connection.execute(select(*UsageRecord.__table__.columns))).all()
    assert {row.kind for row in rows} == {kind}
    assert {row.usd_per_million_tokens for row in rows} == {Decimal("0.000000000001")}
    await close_gateway(gateway)
