"""What the database refuses for good, and what only for now: values that fit no column, names, statements."""

from __future__ import annotations

from decimal import Decimal

import pytest
from sqlalchemy import text

from engine.ledger.usage_buffer import UsageBuffer
from engine.ledger.usage_rows import delivered as usage_rows
from models.embedding import Account, BatchOutcome, Limits, Route
from models.errors import StorageBlocked, StorageRefused, StorageUnavailable
from models.job import JobStatus
from models.usage import UsageRecord
from tests.integration.store import MODEL, Store, landed, writer_of
from tests.integration.test_outages import checked, only


async def test_a_result_that_can_never_be_stored_is_paid_once_and_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A ledger row that no column takes. The other batches of the same record are kept."""
    held = await store.claim(await only(store, job_id := await store.submit(10)))
    good, bad, also_good = landed(held, route=store.routes[0])
    bad = bad._replace(tokens=1 << 63)
    writer = writer_of(store, held)
    for part in (good, bad, also_good):
        writer.add(part)
    await writer.close()
    assert writer.shard_done
    snapshot = await checked(store, job_id)
    assert len(snapshot.with_vector) == 6 and len(snapshot.with_error) == 4
    assert await store.status(job_id) == "completed_with_errors"
    [code] = {failure.code for failure in snapshot.failures}
    assert code == "storage_refused"
    assert "the database refused to store this" in caplog.text
    [kept] = (store.runtime.settings.data_dir / "spool").glob("*")
    assert kept.suffix == ".bad"


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_name_that_is_too_long_for_its_column_is_refused_for_good(store: Store) -> None:
    long = Route(Account("a" * 68, "", ""), "m", 16, Limits(), Decimal(0))
    held = await store.claim(await only(store, job_id := await store.submit(4)))
    writer = writer_of(store, held)
    for part in landed(held, route=long):
        writer.add(part)
    await writer.close()
    assert writer.shard_done and await store.status(job_id) == JobStatus.FAILED
    buffer = UsageBuffer(store.runtime.database, None)
    part = BatchOutcome([0], None, None, 5, False, Decimal(0), long)
    good = BatchOutcome([0], None, None, 5, False, Decimal(0), store.routes[0])
    buffer.add(usage_rows([part, good], project="p", key_id="k", lane="interactive", alias=MODEL))
    await buffer.close()
    assert await store.count(UsageRecord, UsageRecord.lane == "interactive") == 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("select * from no_such_table", StorageBlocked),
        ("select no_such_column from jobs", StorageBlocked),
        ("select 'x'::int", StorageRefused),
        ("select 1/0", StorageRefused),
        ("set local statement_timeout = 20; select pg_sleep(5)", StorageUnavailable),
        ("set transaction read only; delete from jobs", StorageUnavailable),
    ],
)
async def test_a_statement_is_refused_by_what_is_wrong(store: Store, statement: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as refused:
        async with store.runtime.database.write() as connection:
            for each in statement.split("; "):
                await connection.execute(text(each))
    assert type(refused.value) is kind
    await store.runtime.database.ping()
