"""Record: first writer wins, late results count once, and ledger, counters and rows always agree."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import pytest

from engine.jobs.control import termination
from engine.jobs.maintenance.purge import purge
from engine.jobs.maintenance.sweep import requeue_expired
from engine.jobs.recording.record_outcomes import SHARD_CLOSED, Recorded, fail_remaining, record
from models.embedding import Matrix
from models.errors import UpstreamUnavailable
from models.job import FINISHED, JobStatus
from models.usage import UsageKind
from providers.fake import fake_tokens, fake_vectors
from tests.integration.snapshot import DatabaseSnapshot
from tests.integration.store import SHARD_INPUTS, UPSTREAM_MODEL, WIDTH, Store, landed, refused, spoiled, text_of


def expected(indexes: Iterable[int]) -> Matrix:
    return fake_vectors([text_of("text", index) for index in indexes], WIDTH, UPSTREAM_MODEL)


async def checked(store: Store, job_id: str) -> DatabaseSnapshot:
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    snapshot.check(expected)
    return snapshot


async def test_a_job_recorded_in_parts_completes_with_every_vector_in_place(store: Store) -> None:
    job_id = await store.submit(25)
    for held in await store.claim_all(job_id):
        parts = landed(held, route=store.routes[0], cut=3)
        # Batches land in any order, and several at a time.
        assert await record(store.jobs, held, parts[::-2]) == Recorded(shard_done=False, job_active=True)
        await record(store.jobs, held, parts[-2::-2])
    snapshot = await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED
    assert sorted(snapshot.with_vector) == list(range(25))
    assert snapshot.tokens_in_ledger == sum(fake_tokens(text_of("text", index)) for index in range(25))


async def test_recording_the_same_again_changes_nothing(store: Store) -> None:
    job_id = await store.submit(20)
    first, _ = await store.claim_all(job_id)
    parts = landed(first, route=store.routes[0])
    assert await record(store.jobs, first, parts, "use_1") == Recorded(shard_done=True, job_active=True)
    before = await checked(store, job_id)
    assert await record(store.jobs, first, [spoiled(part) for part in parts], "use_1") == SHARD_CLOSED
    after = await checked(store, job_id)
    assert (after.runs, after.ledger, after.shards) == (before.runs, before.ledger, before.shards)


async def test_a_late_result_counts_where_there_is_none_and_never_overwrites(store: Store) -> None:
    """A worker that lost its lease brings batches whose boundaries cross those of its successor."""
    [shard_id] = await store.shard_ids(job_id := await store.submit())
    late = await store.claim(shard_id, "late")
    await store.expire_lease(shard_id)
    await requeue_expired(store.jobs)
    fresh = await store.claim(shard_id, "fresh")
    await record(store.jobs, fresh, landed(fresh, [0, 1, 2, 3, 6, 7], route=store.routes[0], cut=2))
    stale_parts = landed(late, [1, 2, 3, 4, 5, 6], route=store.routes[1], cut=3)
    recorded = await record(store.jobs, late, stale_parts)
    assert recorded == Recorded(shard_done=False, job_active=True)
    snapshot = await checked(store, job_id)
    assert sorted(snapshot.with_vector) == [0, 1, 2, 3, 4, 5, 6, 7]
    rows = {(row.provider, row.kind, row.code): (row.inputs, row.calls) for row in snapshot.ledger}
    assert rows == {
        ("one", "delivered", None): (6, 3),
        ("two", "delivered", None): (2, 1),
        ("two", "wasted", "late_result"): (4, 2),
    }
    # What one call was billed for is shared out, and nothing of it is lost.
    billed = sum(part.tokens for part in stale_parts)
    assert sum(row.prompt_tokens for row in snapshot.ledger if row.provider == "two") == billed
    await record(store.jobs, fresh, landed(fresh, [4, 5, 8, 9], route=store.routes[0]))
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_failures_of_a_worker_that_lost_its_shard_are_not_recorded(store: Store) -> None:
    """Its vectors are paid for and good; its failures may be its own, and the present worker tries these inputs too."""
    [shard_id] = await store.shard_ids(job_id := await store.submit())
    stale = await store.claim(shard_id, "stale")
    await store.expire_lease(shard_id)
    fresh = await store.claim(shard_id, "fresh")
    await record(store.jobs, stale, [*refused(stale, [0, 1]), *landed(stale, [2, 3], route=store.routes[0])])
    snapshot = await checked(store, job_id)
    assert sorted(snapshot.with_vector) == [2, 3] and (await store.job(job_id)).failed == 0
    await record(store.jobs, fresh, landed(fresh, [0, 1, 4, 5, 6, 7, 8, 9], route=store.routes[0]))
    assert await store.status(job_id) == JobStatus.COMPLETED


async def test_the_first_of_two_writers_at_once_wins(store: Store) -> None:
    other = store.another()
    for _ in range(5):
        [shard_id] = await store.shard_ids(job_id := await store.submit())
        one = await store.claim(shard_id)
        await store.expire_lease(shard_id)
        two = await store.claim(shard_id)
        await asyncio.gather(
            record(store.jobs, one, landed(one, route=store.routes[0], cut=3)),
            record(other.jobs, two, landed(two, route=store.routes[1], cut=4)),
            record(store.jobs, two, landed(two, [2, 3], route=store.routes[0])),
        )
        snapshot = await checked(store, job_id)
        assert sorted(snapshot.with_vector) == list(range(10))
        assert await store.status(job_id) == JobStatus.COMPLETED
    await other.close()


async def test_the_last_shards_of_a_job_that_close_at_once_end_it(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Each sees the other as open until it commits, and yet no sweep is needed."""
    others = [store.another() for _ in range(3)]
    for _ in range(8):
        held = await store.claim_all(job_id := await store.submit(4 * SHARD_INPUTS))
        await asyncio.gather(
            *(
                record(each.jobs, shard, landed(shard, route=store.routes[0]))
                for each, shard in zip((store, *others), held, strict=True)
            )
        )
        job = await store.job(job_id)
        assert (job.status, job.open_shards) == (JobStatus.COMPLETED, 0) and job.finished_at is not None
    assert "counted anew" not in caplog.text
    for other in others:
        await other.close()


async def test_shards_that_record_failures_at_once_do_not_lock_each_other_out(store: Store) -> None:
    other = store.another()
    job_id = await store.submit(60)
    holders = await store.claim_all(job_id)

    async def settle(number: int) -> None:
        held = holders[number]
        parts = landed(held, range(5), route=store.routes[0]) + refused(held, range(5, 10), f"code_{number % 2}")
        await record((store if number % 2 else other).jobs, held, parts)

    async with asyncio.timeout(1.0):  # PostgreSQL looks for deadlocks after one second
        await asyncio.gather(*map(settle, range(6)))
    await checked(store, job_id)
    job = await store.job(job_id)
    assert (job.status, job.completed, job.failed) == (JobStatus.COMPLETED_WITH_ERRORS, 30, 30)
    assert {entry["code"]: (entry["count"], entry["example_index"]) for entry in job.error_summary} == {
        "code_0": (15, 5),
        "code_1": (15, 15),
    }
    await other.close()


async def test_a_job_finishes_exactly_once_however_many_finish_it(store: Store) -> None:
    other = store.another()
    job_id = await store.submit(40)
    holders = await store.claim_all(job_id)
    recorded = await asyncio.gather(
        *(record(each.jobs, held, landed(held, route=store.routes[0])) for held in holders for each in (store, other))
    )
    assert all(one.shard_done for one in recorded)
    job = await store.job(job_id)
    snapshot = await checked(store, job_id)
    assert (job.status, job.open_shards) == (JobStatus.COMPLETED, 0)
    assert len(snapshot.of_kind(UsageKind.DELIVERED)) == len(snapshot.of_kind(UsageKind.WASTED)) == 4
    assert job.cost_usd == 2 * snapshot.cost_in_ledger == 2 * job.wasted_cost_usd
    await other.close()


@pytest.mark.parametrize(
    ("bad", "status"),
    [(0, JobStatus.COMPLETED), (3, JobStatus.COMPLETED_WITH_ERRORS), (10, JobStatus.FAILED)],
)
async def test_what_a_job_becomes_depends_on_its_errors(store: Store, bad: int, status: JobStatus) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await record(store.jobs, held, refused(held, range(bad)))
    if bad < 10:
        await record(store.jobs, held, landed(held, range(bad, 10), route=store.routes[0]))
    await checked(store, job_id)
    assert await store.status(job_id) == status


async def test_lines_refused_at_the_door_count_from_the_start(store: Store) -> None:
    job_id = await store.submit(25, bad={0, 7, *range(10, 20)})
    await checked(store, job_id)
    job = await store.job(job_id)
    assert (job.total, job.completed, job.failed, job.open_shards) == (25, 0, 12, 2)
    for shard in (await store.shards(job_id))[::2]:
        held = await store.claim(shard.id)
        await record(store.jobs, held, landed(held, route=store.routes[0]))
    await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.COMPLETED_WITH_ERRORS


async def test_the_rest_of_a_shard_fails_input_by_input(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit(10, bad={9}))
    await record(store.jobs, held, landed(held, range(6), route=store.routes[0]))
    await fail_remaining(store.jobs, held, UpstreamUnavailable("gone"))
    snapshot = await checked(store, job_id)
    assert sorted(snapshot.with_error) == [6, 7, 8, 9]
    assert {row.code for row in snapshot.failures} == {"upstream_unavailable", "empty_input"}
    assert await store.status(job_id) in FINISHED


@pytest.mark.fault(44)
async def test_nothing_is_kept_of_a_cancelled_shard_or_a_removed_job(store: Store) -> None:
    cancelled, removed = await store.submit(), await store.submit()
    for job_id in (cancelled, removed):
        [held] = await store.claim_all(job_id)
        await termination.cancel(store.jobs, "p", job_id)
        await termination.drop_claim(store.jobs, held)
        if job_id == removed:
            await termination.delete_job(store.jobs, "p", job_id)
            await purge(store.jobs)
        assert await record(store.jobs, held, landed(held, route=store.routes[0])) == SHARD_CLOSED
        snapshot = await checked(store, job_id)
        assert not snapshot.runs
        assert {(row.kind, row.code, row.inputs) for row in snapshot.ledger} == {("wasted", "late_result", 10)}


@pytest.mark.fault(44)
async def test_what_was_under_way_when_the_job_was_cancelled_still_lands(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await termination.cancel(store.jobs, "p", job_id)
    recorded = await record(store.jobs, held, landed(held, range(4), route=store.routes[0]))
    assert recorded == Recorded(shard_done=False, job_active=False)
    await termination.drop_claim(store.jobs, held)
    snapshot = await checked(store, job_id)
    assert await store.status(job_id) == JobStatus.CANCELLED
    assert sorted(snapshot.with_vector) == [0, 1, 2, 3]


async def test_neighbours_share_one_row_and_gaps_divide_them(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await record(store.jobs, held, landed(held, [0, 1, 2, 5, 6, 7], route=store.routes[0], cut=2))
    snapshot = await checked(store, job_id)
    assert sorted((run.first_index, run.count) for run in snapshot.runs) == [(0, 3), (5, 3)]


async def test_the_ledger_names_what_was_consumed_and_at_what_price(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    await record(store.jobs, held, landed(held, route=store.routes[1], cut=5))
    [row] = (await checked(store, job_id)).ledger
    assert (row.project, row.key_id, row.lane, row.alias) == ("p", "key", "bulk", "test/8")
    assert (row.provider, row.upstream_model, row.end_user) == ("two", "m", "u")
    assert (row.inputs, row.calls, row.estimated) == (10, 2, False)
    exact = Decimal(row.prompt_tokens) * Decimal("0.0123457") / 1_000_000
    assert abs(row.cost_usd - exact) <= Decimal("1e-12")


@pytest.mark.parametrize("estimated", [set(), {0}, {2}, {0, 1, 2}], ids=["none", "first", "last", "all"])
async def test_one_estimate_makes_the_usage_of_the_job_an_estimate(store: Store, estimated: set[int]) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    parts = landed(held, route=store.routes[0])
    assert len(parts) == 3
    parts = [part._replace(tokens_estimated=number in estimated) for number, part in enumerate(parts)]
    await record(store.jobs, held, parts)
    assert bool((await store.job(job_id)).usage_estimated) is bool(estimated)


async def test_vectors_are_float32_bytes_to_the_bit(store: Store) -> None:
    [held] = await store.claim_all(job_id := await store.submit())
    odd = np.array([np.float32(1e-42), -0.0, 3.4e38, 1 / 3, 1.0, 2.0, 3.0, 4.0], dtype="<f4")
    [part] = landed(held, [0], route=store.routes[0])
    await record(store.jobs, held, [part._replace(vectors=odd.reshape(1, 8))])
    snapshot = await DatabaseSnapshot.read(store.runtime.database, job_id)
    assert snapshot.runs[0].data == odd.tobytes()
