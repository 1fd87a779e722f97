"""The validation of batches, on both databases: what starts a batch, what fails it, and who may say so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from engine.batches.steps import ClaimedStep, StepStopped
from engine.batches.validate import validate_batch
from models.base import db_now
from models.batch import JobStep
from models.file import File
from tests.integration.batches import request, step_parts
from tests.integration.new_batches import NewBatch, new_batch
from tests.integration.store import MODEL, Store


def errors_of(row: Any) -> list[tuple[Any, ...]]:
    return [(each["code"], each["param"], each["line"]) for each in row.errors]


async def test_a_good_file_starts_its_batch(store: Store) -> None:
    batch = await new_batch(store, [request("a", "one", user="u"), request("b", ["two", "three"], user="u")])
    row = await batch.row()
    assert (row.status, row.total, row.in_progress_at) == ("validating", 0, None)
    assert 86399 < row.expires_at - row.created_at < 86401
    row = await batch.validate()
    assert (row.status, row.total, row.refused, row.errors, row.error_count) == ("in_progress", 2, 0, [], 0)
    assert row.created_at <= row.in_progress_at and row.duplicate_lines is None
    job, step = await batch.job(), await batch.step()
    assert (job.status, job.alias, job.dimensions, job.total, job.batch_id) == ("in_progress", MODEL, 8, None, row.id)
    assert job.options == {"input_type": None, "truncate": "none", "user": "u", "provider_options": {}}
    assert (step.kind, step.lease_until, step.progress) == ("ingest", None, None)
    (variant,) = await batch.variants()
    assert (variant.number, variant.alias, variant.first_index, variant.inputs) == (0, MODEL, 0, 3)
    assert (variant.dimensions, variant.error, variant.options) == (8, None, job.options)


async def test_each_set_of_options_has_its_own_range_of_inputs(store: Store) -> None:
    lines = [
        request("a", "1"),
        request("b", ["2", "3"], truncate="end"),
        request("c", "4", dimensions=8),
        request("d", "5", encoding_format="base64", user="u"),
        request("e", "6", truncate="end"),
    ]
    batch = await new_batch(store, lines)
    row = await batch.validate()
    assert (row.status, row.total, row.refused) == ("in_progress", 5, 0)
    variants = await batch.variants()
    assert [(v.number, v.first_index, v.inputs) for v in variants] == [(0, 0, 2), (1, 2, 3), (2, 5, 1)]
    assert [v.options["truncate"] for v in variants] == ["none", "end", "none"]
    assert {v.options["user"] for v in variants} == {None}
    job = await batch.job()
    assert (job.alias, job.space, job.dimensions) == ("", "", 0)
    assert [each["code"] for each in job.warnings] == ["unsupported_parameter"]  # users differ


async def test_every_bad_line_is_named(store: Store) -> None:
    lines = [
        b"{nonsense",
        request("a", "x").replace(b'"custom_id":"a",', b""),
        request("b", "x").replace(b"/v1/embeddings", b"/v1/completions"),
        b"",
        request("c", "x", model="nobody"),
        request("d", "x", stream=True),
        request("e", "x"),
        request("e", "y"),
        request("f", []),  # fails alone
    ]
    batch = await new_batch(store, b"\xef\xbb\xbf" + b"\r\n".join(lines), has_webhook=True)
    row = await batch.validate()
    assert (row.status, row.error_count, row.total) == ("failed", 6, 0)
    assert errors_of(row) == [
        ("invalid_json_line", None, 1),
        ("missing_required_parameter", "custom_id", 2),
        ("invalid_url", "url", 3),
        ("model_not_found", "body.model", 5),
        ("streaming_unsupported", "body.stream", 6),
        ("duplicate_custom_id", "custom_id", 8),
    ]
    assert row.errors[3]["message"] == "The provided model 'nobody' is not supported by the Batch API."
    assert "line 7" in row.errors[5]["message"]
    assert row.failed_at is not None and row.in_progress_at is None
    job = await batch.job()
    assert (job.status, job.error_summary[0]["code"]) == ("failed", "invalid_json_line") and job.finished_at
    assert await batch.step() is None and await batch.variants() == []
    assert await batch.events() == ["batch.failed"]


async def test_a_thousand_errors_are_listed_and_all_are_counted(store: Store) -> None:
    lines = [b"nonsense"] * 1500 + [request("same", "x")] * 701
    batch = await new_batch(store, lines)
    row = await batch.validate()
    assert (len(row.errors), row.error_count) == (1000, 2200)
    assert [each["line"] for each in row.errors] == list(range(1, 1001))


async def test_a_lenient_batch_runs_its_good_lines(store: Store) -> None:
    lines = [
        b"nonsense",
        request("a", ["1", "2"]),
        request("b", "x", model="nobody"),
        request("a", "3"),
        request("c", "x", dimensions=4),  # the model has one width
        request("d", "4"),
        request("d", []),
        request("d", "5"),
    ]
    batch = await new_batch(store, lines, metadata={"embedmill_validation": "lenient"})
    row = await batch.validate()
    assert (row.status, row.total, row.refused, row.errors) == ("in_progress", 8, 6, [])
    assert await batch.duplicate_lines() == [4, 7, 8]
    variants = await batch.variants()
    assert [(v.alias, v.first_index, v.inputs) for v in variants] == [(MODEL, 0, 3), ("nobody", 3, 0), (MODEL, 3, 0)]
    assert [v.error and (v.error["code"], v.error["status"], v.error["param"]) for v in variants] == [
        None,
        ("model_not_found", 404, "body.model"),
        ("invalid_value", 400, "dimensions"),
    ]
    assert (await batch.job()).alias == MODEL


async def test_options_that_the_model_refuses_fail_only_their_lines(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x", dimensions=4), request("b", "y")])
    row = await batch.validate()
    assert (row.status, row.total, row.refused) == ("in_progress", 2, 1)


@pytest.mark.parametrize(
    ("body", "options", "code", "words"),
    [
        (None, {}, "invalid_request", "Cannot find file"),
        (request("a", "x"), {"owner": "other"}, "invalid_request", "Cannot find file"),
        (request("a", "x"), {"purpose": "user_data"}, "invalid_request", "purpose"),
        (b"", {}, "empty_file", "empty"),
        (b"\n \r\n\n", {}, "empty_file", "empty"),
    ],
)
async def test_a_file_that_cannot_be_read_fails_the_batch(
    store: Store, body: bytes | None, options: dict[str, Any], code: str, words: str
) -> None:
    batch = await new_batch(store, body, **options)
    row = await batch.validate()
    assert (row.status, row.error_count) == ("failed", 1)
    (error,) = row.errors
    assert (error["code"], error["line"]) == (code, None) and words in error["message"]
    assert error["param"] == ("file_id" if code == "invalid_request" else None)
    if words == "Cannot find file":
        beginning = f"Cannot find file {row.input_file_id}, or organization p does not have access to it."
        assert error["message"].startswith(beginning)


async def test_a_file_that_is_deleted_before_its_validation_fails_the_batch(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    async with store.database.write() as connection:
        await connection.execute(update(File).values(deleted_at=db_now()))
    row = await batch.validate()
    assert (row.status, row.errors[0]["param"]) == ("failed", "file_id")


async def test_a_line_that_is_too_long_is_named(store: Store) -> None:
    limit = store.runtime.settings.max_line_bytes
    batch = await new_batch(store, [request("a", "x"), request("b", "x" * limit), request("c", "x")])
    assert errors_of(await batch.validate()) == [("line_too_long", None, 2)]


async def test_more_variants_than_a_job_takes_fail_the_batch(store: Store) -> None:
    lines = [request(str(n), "x", providerOptions={"fake": {"n": n}}) for n in range(1001)]
    batch = await new_batch(store, lines)
    assert errors_of(await batch.validate()) == [("too_many_variants", None, None)]


@pytest.mark.parametrize(
    ("line", "code"), [(request("a", "x"), "too_many_inputs"), (b'{"custom_id":"a"}', "too_many_errors")]
)
async def test_a_file_is_not_read_beyond_its_bounds(database_url: str, tmp_path: Path, line: bytes, code: str) -> None:
    """Whatever its lines are: something is kept in memory of each."""
    store = Store.open(database_url, tmp_path, max_inputs_per_job=20_000, max_errors_per_job=2000)
    batch = await new_batch(store, (line + b"\n") * 200_000, metadata={"embedmill_validation": "lenient"})
    parts, read = step_parts(store), 0

    def must_stop() -> bool:
        nonlocal read
        read += 1
        return False

    await validate_batch(parts, _stopping(await batch.claim(), must_stop))
    row = await batch.row()
    assert (row.status, errors_of(row), row.error_count) == ("failed", [(code, None, None)], 1)
    assert read < 25  # steps of 128 KiB
    await store.close()


async def test_lines_without_a_model_take_the_one_of_the_batch(store: Store) -> None:
    line = request("a", "x").replace(f'"model":"{MODEL}",'.encode(), b"")
    batch = await new_batch(store, [line], default_model=MODEL)
    assert (await batch.validate()).status == "in_progress"
    assert (await batch.variants())[0].alias == MODEL


async def test_two_workers_validate_one_batch_and_one_of_them_writes(store: Store) -> None:
    batch = await new_batch(store, [request(str(n), "x") for n in range(500)])
    slow = await batch.claim()
    await batch.let_lease_pass()
    fast = await batch.claim()
    outcomes = await asyncio.gather(
        validate_batch(step_parts(store), slow), validate_batch(step_parts(store), fast), return_exceptions=True
    )
    assert isinstance(outcomes[0], StepStopped) and outcomes[1] is None
    row = await batch.row()
    assert (row.status, row.total) == ("in_progress", 500)
    assert len(await batch.variants()) == 1


async def test_a_validation_that_was_cut_off_is_done_again_by_another_worker(store: Store) -> None:
    batch = await new_batch(store, [request(str(n), "x") for n in range(3000)])
    step = await batch.claim()
    checks = 0

    def must_stop() -> bool:
        nonlocal checks
        checks += 1
        return checks > 1

    with pytest.raises(StepStopped):
        await validate_batch(step_parts(store), _stopping(step, must_stop))
    assert (await batch.row()).status == "validating" and await batch.variants() == []
    await batch.let_lease_pass()
    other = store.another()
    try:
        await validate_batch(step_parts(other), await batch.claim(other))
    finally:
        await other.close()
    row = await batch.row()
    assert (row.status, row.total) == ("in_progress", 3000)


def _stopping(step: ClaimedStep, must_stop: Any) -> ClaimedStep:
    return ClaimedStep(step.job_id, step.project, step.kind, step.fence, step.progress, must_stop, step.attempts)


async def test_a_job_that_ended_meanwhile_is_not_started(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    step = await batch.claim()
    await store.set_job(batch.job_id, status="expired")
    with pytest.raises(StepStopped):
        await validate_batch(step_parts(store), step)
    assert (await batch.row()).status == "validating" and await batch.variants() == []


async def test_equal_ids_are_all_counted(store: Store) -> None:
    batch: NewBatch = await new_batch(store, (request("same", "x") + b"\n") * 20_000)
    row = await batch.validate()
    assert (row.error_count, len(row.errors)) == (19_999, 1000)
    assert (await batch.step()) is None


@pytest.mark.parametrize("lenient", [True, False])
async def test_more_repeated_ids_than_are_compared(store: Store, lenient: bool) -> None:
    fields: dict[str, Any] = {"metadata": {"embedmill_validation": "lenient"}} if lenient else {}
    batch = await new_batch(store, (request("same", "x") + b"\n") * 255_000, **fields)
    row = await batch.validate()
    assert row.status == "failed"
    if lenient:
        assert [each["code"] for each in row.errors] == ["too_many_duplicate_custom_ids"]
    else:
        assert (row.error_count, len(row.errors)) == (254_999, 1000)


async def test_the_step_is_due_for_ingest_at_once(store: Store) -> None:
    batch = await new_batch(store, [request("a", "x")])
    await batch.validate()
    async with store.database.write() as connection:
        due = await connection.execute(update(JobStep).where(JobStep.due_at <= db_now()).values(attempts=0))
    assert due.rowcount == 1
