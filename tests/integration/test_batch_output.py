"""The output of a batch: one line for each request, in the order of the input file, in the file that it belongs to."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from engine.batches.lines import BatchLine, parse_batch_line
from models.base import db_now
from models.batch import Batch, BatchStatus, JobStep, JobVariant
from models.file import File, FilePart
from models.job import Job, JobStatus, VectorBlock
from models.webhook import EventType
from tests.integration.batches import TOKENS, RunBatch, request, run_batch, vectors_of
from tests.integration.store import Store

MIXED = [
    request("a", "one"),
    request("b", ["two", "three", "four"]),
    request("c", "one", "test/16"),
    request("d", "five", encoding_format="base64"),
    request("e", [1, 2, 3]),
    request("f", "six", "test/16", dimensions=4),
    request("g", [[7, 8], [9]], "test/16"),
    request("h", "one", input_type="query"),
]


def checked_vectors(line: dict[str, Any], source: bytes) -> None:
    """The vectors of an output line are those of the inputs of its request."""
    wanted = parse_batch_line(source, None)
    assert isinstance(wanted, BatchLine)
    body = line["response"]["body"]
    right = vectors_of(wanted.inputs, wanted)
    assert [item["index"] for item in body["data"]] == list(range(len(wanted.inputs)))
    for item, row in zip(body["data"], right, strict=True):
        embedding = item["embedding"]
        found = (
            np.frombuffer(base64.b64decode(embedding), "<f4")
            if wanted.encoding == "base64"
            else np.array(embedding, dtype="<f4")
        )
        assert isinstance(embedding, str) == (wanted.encoding == "base64")
        assert found.tobytes() == row.tobytes()
    assert body["model"] == wanted.model


def files(count: int, *, prefix: str = "text") -> list[bytes]:
    """Lines of alternating models, some of them with several inputs."""
    lines = []
    for i in range(count):
        text: Any = [f"{prefix} {i}.{j}" for j in range(i % 4)] if i % 5 == 0 and i % 4 else f"{prefix} {i}"
        lines.append(request(f"id-{i}", text, "test/16" if i % 3 == 0 else "test/8"))
    return lines


async def unowned_parts(store: Store) -> int:
    return await store.count(FilePart, FilePart.owner_id.is_(None))


async def test_models_widths_lists_and_encodings_in_one_file(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(MIXED))
    row = await batch.write()
    lines = await batch.lines(row.output_file_id)
    assert [line["custom_id"] for line in lines] == list("abcdefgh")
    for line, source in zip(lines, MIXED, strict=True):
        assert line["error"] is None and line["response"]["status_code"] == 200
        checked_vectors(line, source)
    assert row.error_file_id is None and (row.completed, row.failed) == (8, 0)


async def test_the_end_of_a_batch(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(30)) + b"\n")
    row = await batch.write()
    assert row.status == BatchStatus.COMPLETED
    job = await store.job(batch.job_id)
    assert row.created_at <= row.in_progress_at <= row.finalizing_at <= row.completed_at
    assert row.finalizing_at == job.finished_at
    assert (row.failed_at, row.expired_at, row.cancelled_at, row.cancelling_at) == (None,) * 4
    async with store.database.read() as connection:
        file = (await connection.execute(select(*File.__table__.columns).where(File.id == row.output_file_id))).one()
    assert (file.purpose, file.filename, file.project) == ("batch_output", f"{batch.id}_output.jsonl", "p")
    assert file.bytes == len(await batch.content(row.output_file_id))
    assert file.expires_at == pytest.approx(file.created_at + 30 * 86400, abs=5)
    assert await store.count(JobStep) == 0 and await unowned_parts(store) == 0


async def test_output_expires_after(store: Store) -> None:
    batch = await run_batch(
        store, b"\n".join(files(3)), output_expires_after_s=3600, failures={"text 1": "upstream_rejected"}
    )
    row = await batch.write()
    async with store.database.read() as connection:
        found = (await connection.execute(select(*File.__table__.columns).where(File.purpose == "batch_output"))).all()
    assert {file.filename for file in found} == {f"{batch.id}_output.jsonl", f"{batch.id}_error.jsonl"}
    assert {file.id for file in found} == {row.output_file_id, row.error_file_id}
    assert all(file.expires_at == pytest.approx(file.created_at + 3600, abs=5) for file in found)


@pytest.mark.parametrize("part_bytes", [1, 300, 1 << 30])
async def test_many_lines_of_two_models_keep_their_order(store: Store, part_bytes: int) -> None:
    sources = files(150)
    failures = {"text 7": "upstream_rejected", "text 5.0": "input_too_long", "text 14": "upstream_unavailable"}
    batch = await run_batch(store, b"\n".join(sources), failures=failures)
    row = await batch.write(part_bytes=part_bytes)
    output, errors = await batch.lines(row.output_file_id), await batch.lines(row.error_file_id)
    failed = {"id-7", "id-5", "id-14"}
    assert [line["custom_id"] for line in output] == [f"id-{i}" for i in range(150) if f"id-{i}" not in failed]
    assert [line["custom_id"] for line in errors] == ["id-5", "id-7", "id-14"]
    by_id = {orjson_id(source): source for source in sources}
    for line in output:
        checked_vectors(line, by_id[line["custom_id"]])
    assert (row.completed, row.failed, row.total) == (147, 3, 150)
    assert sum(line["response"]["body"]["usage"]["total_tokens"] for line in output) == TOKENS


def orjson_id(source: bytes) -> str:
    line = parse_batch_line(source, None)
    assert isinstance(line, BatchLine)
    return line.custom_id


async def test_usage_follows_the_length_of_the_inputs(store: Store) -> None:
    body = b"\n".join([request("short", "x"), request("long", "x" * 3000), request("list", ["x" * 3000] * 2)])
    row = await (batch := await run_batch(store, body)).write()
    lines = await batch.lines(row.output_file_id)
    usage = {line["custom_id"]: line["response"]["body"]["usage"]["prompt_tokens"] for line in lines}
    assert sum(usage.values()) == TOKENS
    assert usage["list"] == pytest.approx(2 * usage["long"], abs=2) and usage["long"] > 500 * usage["short"]


async def test_a_failed_input_fails_its_whole_line(store: Store) -> None:
    body = b"\n".join([request("list", ["a", "b", "bad", "worse"]), request("one", "bad"), request("fine", "a")])
    failures = {"bad": "input_too_long", "worse": "upstream_unavailable"}
    row = await (batch := await run_batch(store, body, failures=failures)).write()
    many, one = await batch.lines(row.error_file_id)
    assert (many["custom_id"], many["error"]["code"], many["error"]["param"]) == ("list", "input_too_long", "input[2]")
    assert "input[2]" in many["error"]["message"] and "it is input_too_long" in many["error"]["message"]
    assert (one["error"]["param"], one["error"]["message"]) == ("input", "it is input_too_long")
    assert many["response"]["status_code"] == one["response"]["status_code"] == 400
    assert [line["custom_id"] for line in await batch.lines(row.output_file_id)] == ["fine"]


async def test_all_fail(store: Store) -> None:
    failures = {"a": "upstream_rejected", "b": "upstream_unavailable"}
    batch = await run_batch(
        store, b"\n".join([request("1", "a"), request("2", "b")]), failures=failures, status=JobStatus.FAILED
    )
    row = await batch.write()
    assert (row.status, row.output_file_id) == (BatchStatus.COMPLETED, None)
    assert [line["response"]["status_code"] for line in await batch.lines(row.error_file_id)] == [400, 502]
    assert (row.completed, row.failed) == (0, 2)


async def test_lines_that_were_refused_are_errors_at_their_position(store: Store) -> None:
    sources = [
        request("ok", "a"),
        b"not json",
        b"",
        request("ok", "again"),
        request("none", "a", "test/none"),
        request("empty", []),
        b'{"custom_id":"url","method":"POST","url":"/v1/other","body":{}}',
        request("last", "b"),
    ]
    batch = await run_batch(
        store,
        b"\xef\xbb\xbf" + b"\r\n".join(sources),
        unknown_models={"test/none"},
        duplicate_lines=[4],
        is_lenient=True,
    )
    row = await batch.write()
    errors = await batch.lines(row.error_file_id)
    assert [line["custom_id"] for line in await batch.lines(row.output_file_id)] == ["ok", "last"]
    assert [(line["custom_id"], line["error"]["code"], line["error"]["line"]) for line in errors] == [
        (None, "invalid_json_line", 2),
        ("ok", "duplicate_custom_id", 4),
        ("none", "model_not_found", 5),
        ("empty", "empty_array", 6),
        ("url", "invalid_url", 7),
    ]
    assert [line["response"]["status_code"] for line in errors] == [400, 400, 404, 400, 400]
    assert (row.completed, row.failed, row.total) == (2, 5, 7)


@pytest.mark.parametrize(
    ("status", "final", "code", "event"),
    [
        (JobStatus.CANCELLED, BatchStatus.CANCELLED, "batch_cancelled", EventType.BATCH_CANCELLED),
        (JobStatus.EXPIRED, BatchStatus.EXPIRED, "batch_expired", EventType.BATCH_EXPIRED),
    ],
)
async def test_what_was_done_before_the_end_is_kept(
    store: Store, status: JobStatus, final: BatchStatus, code: str, event: EventType
) -> None:
    sources = [request(f"id-{i}", [f"x{i}", f"y{i}"] if i % 2 else f"x{i}") for i in range(40)]
    not_run = {f"x{i}" for i in range(20, 40)} | {"y9"}
    batch = await run_batch(
        store, b"\n".join(sources), status=status, not_run=not_run, failures={"x3": "upstream_rejected"}
    )
    row = await batch.write()
    done = [i for i in range(20) if i not in (3, 9)]
    assert [line["custom_id"] for line in await batch.lines(row.output_file_id)] == [f"id-{i}" for i in done]
    errors = await batch.lines(row.error_file_id)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        ("id-3", "upstream_rejected"),
        ("id-9", code),
        *((f"id-{i}", code) for i in range(20, 40)),
    ]
    assert all(line["response"] is None for line in errors[1:])
    assert row.status == final and (row.completed, row.failed) == (18, 22)
    assert getattr(row, f"{final}_at") >= row.in_progress_at and row.completed_at is None


async def test_a_batch_that_was_never_validated_ends_without_files(store: Store) -> None:
    for status in (JobStatus.CANCELLED, JobStatus.EXPIRED):
        batch = await run_batch(store, b"\n".join(files(3)), status=status, is_validated=False)
        row = await batch.write()
        assert (row.status, row.output_file_id, row.error_file_id) == (status, None, None)
        assert (row.total, row.completed, row.failed) == (0, 0, 0)


async def test_a_cancel_while_the_output_is_written_ends_as_cancelled_with_all_results(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(5)), status=JobStatus.COMPLETED)
    async with store.database.write() as connection:
        await connection.execute(
            update(Batch).where(Batch.id == batch.id).values(status=BatchStatus.CANCELLING, cancelling_at=db_now())
        )
    row = await batch.write()
    assert row.status == BatchStatus.CANCELLED and row.cancelling_at <= row.cancelled_at
    assert len(await batch.lines(row.output_file_id)) == 5


async def test_the_output_waits_for_calls_in_flight(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(5)), status=JobStatus.EXPIRED)
    await store.set_job(batch.job_id, open_shards=1)
    row = await batch.write()
    assert row.status == BatchStatus.IN_PROGRESS and row.output_file_id is None
    async with store.database.read() as connection:
        step = (await connection.execute(select(*JobStep.__table__.columns))).one()
    assert (step.lease_until, step.attempts) == (None, 0)


@pytest.mark.parametrize("change", [-1, 1])
async def test_inputs_that_do_not_match_the_file_end_the_batch_without_output(store: Store, change: int) -> None:
    batch = await run_batch(store, b"\n".join(files(20)))
    async with store.database.write() as connection:
        await connection.execute(
            update(JobVariant)
            .where(JobVariant.job_id == batch.job_id, JobVariant.number == 1)
            .values(inputs=JobVariant.inputs + change)
        )
    row = await batch.write(part_bytes=100)
    assert (row.status, row.output_file_id, row.error_file_id) == (BatchStatus.FAILED, None, None)
    assert row.errors[0]["code"] == "output_misaligned" and row.failed_at is not None
    assert await store.count(JobStep) == 0
    assert await store.count(FilePart, FilePart.owner_id.like("batch%")) == 0


async def test_the_same_batch_gives_the_same_bytes(store: Store) -> None:
    batch = await run_batch(store, b"\n".join(files(40)), failures={"text 8": "upstream_rejected"})
    row = await batch.write(part_bytes=500)
    first = await batch.content(row.output_file_id), await batch.content(row.error_file_id)
    async with store.database.write() as connection:
        await connection.execute(
            update(Batch).where(Batch.id == batch.id).values(status=BatchStatus.IN_PROGRESS, completed_at=None)
        )
        await connection.execute(
            JobStep.__table__.insert().values(  # type: ignore[attr-defined]
                job_id=batch.job_id, project="p", kind="run", due_at=0.0, fence=0, attempts=0
            )
        )
    again = await batch.write()
    assert again.output_file_id != row.output_file_id
    assert (await batch.content(again.output_file_id), await batch.content(again.error_file_id)) == first


async def test_a_job_without_a_batch_has_no_output(store: Store) -> None:
    batch: RunBatch = await run_batch(store, b"\n".join(files(3)))
    async with store.database.write() as connection:
        await connection.execute(Batch.__table__.delete())  # type: ignore[attr-defined]
        await connection.execute(update(Job).values(batch_id=None))
    from engine.batches.output import write_output

    await write_output(batch.parts(), await batch.claim())
    assert await store.count(JobStep) == 0 and await store.count(File, File.purpose == "batch_output") == 0
    assert await store.count(VectorBlock) > 0
