"""Native jobs whose corpus is a stored file: every format, and every reason to refuse one."""

from __future__ import annotations

import gzip
import io
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from sqlalchemy import select, update

from engine.batches.composition import step_worker_of
from engine.files.composition import files_of
from engine.files.write import store_file
from models.base import db_now
from models.batch import JobStep
from models.file import File, new_file_id
from models.job import Job
from providers.fake import fake_vectors
from tests.gateway import JOBS, WIDTH, Gateway, error_of

TEXTS = ["first", "second, with a comma", "third «text»"]


async def put(
    gateway: Gateway, body: bytes, filename: str, *, purpose: str = "user_data", project: str = "default"
) -> str:
    """A stored file. Returns its id."""

    async def chunks() -> AsyncIterator[bytes]:
        for low in range(0, len(body), 7000):
            yield body[low : low + 7000]

    file = await store_file(
        files_of(gateway.runtime),
        project=project,
        key_id="key",
        purpose=purpose,
        filename=filename,
        chunks=chunks(),
        max_bytes=1 << 40,
        expires_after_s=None,
    )
    return str(file.id)


async def submit(gateway: Gateway, file_id: str, **fields: Any) -> dict[str, Any]:
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": file_id, **fields})
    assert reply.status_code == 202, reply.text
    job: dict[str, Any] = reply.json()
    assert reply.headers["location"] == f"{JOBS}/{job['id']}"
    return job


async def ingest(gateway: Gateway) -> bool:
    return await step_worker_of(gateway.runtime, "w").run_next()


async def lines_of(gateway: Gateway, job_id: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (await gateway.results(job_id)).content.splitlines()]


def jsonl() -> bytes:
    return b"".join(orjson.dumps({"id": f"id-{n}", "text": text}) + b"\n" for n, text in enumerate(TEXTS))


def csv_of(delimiter: str = ",") -> bytes:
    rows = [f'id-{n}{delimiter}"{text}"' for n, text in enumerate(TEXTS)]
    return "\r\n".join([f"id{delimiter}text", *rows, ""]).encode()


def parquet_of(**columns: Any) -> bytes:
    table = pa.table(columns or {"text": TEXTS, "id": [f"id-{n}" for n in range(3)]})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


FORMATS = [
    ("t.jsonl", jsonl()),
    ("t.NDJSON", b"\xef\xbb\xbf" + jsonl()),
    ("upload", jsonl()),  # by its content
    ("t.csv", csv_of()),
    ("t.csv", b"\xef\xbb\xbf" + csv_of(";")),
    ("t.tsv", csv_of("\t")),
    ("t.parquet", parquet_of()),
    ("blob", parquet_of()),
    ("t.jsonl.gz", gzip.compress(jsonl())),
    ("t.csv.zst", zstandard.compress(csv_of())),
    ("t.csv", gzip.compress(csv_of())),  # by its content
    ("../../etc/t.jsonl", jsonl()),
]


@pytest.mark.parametrize(("filename", "body"), FORMATS, ids=[f"{name}-{n}" for n, (name, _) in enumerate(FORMATS)])
async def test_every_format_gives_the_same_job(gateway: Gateway, filename: str, body: bytes) -> None:
    file_id = await put(gateway, body, filename)
    job = await submit(gateway, file_id, metadata={"a": "b"})
    assert (job["status"], job["counts"]["total"], job["waiting_on"]) == ("in_progress", None, "ingest")
    assert (job["input_file_id"], job["batch_id"], job["metadata"]) == (file_id, None, {"a": "b"})
    assert await ingest(gateway) and not await ingest(gateway)
    job = await gateway.run(job["id"])
    assert (job["status"], job["counts"]["total"], job["errors"]) == ("completed", 3, [])
    lines = await lines_of(gateway, job["id"])
    assert [line["id"] for line in lines] == ["id-0", "id-1", "id-2"]
    assert np.array_equal(np.array([line["embedding"] for line in lines], "f4"), fake_vectors(TEXTS, WIDTH, "up"))


async def test_a_text_file_has_a_text_a_line(gateway: Gateway) -> None:
    job = await submit(gateway, await put(gateway, "\n".join(TEXTS).encode(), "t.txt"))
    await ingest(gateway)
    await gateway.run(job["id"])
    assert [line["id"] for line in await lines_of(gateway, job["id"])] == [None] * 3


@pytest.mark.parametrize(
    ("filename", "body"),
    [
        ("t.csv", b"name,body\nid-0,first\nid-1,second\n"),
        ("t.jsonl", b'{"name":"id-0","body":"first","text":7}\n{"body":"second","name":"id-1"}\n'),
        ("t.parquet", parquet_of(name=["id-0", "id-1"], body=["first", "second"], other=["x", "y"])),
    ],
)
async def test_columns_may_have_other_names(gateway: Gateway, filename: str, body: bytes) -> None:
    job = await submit(gateway, await put(gateway, body, filename), text_column="body", id_column="name")
    await ingest(gateway)
    await gateway.run(job["id"])
    lines = await lines_of(gateway, job["id"])
    assert [line["id"] for line in lines] == ["id-0", "id-1"]
    assert np.allclose(lines[1]["embedding"], fake_vectors(["second"], WIDTH, "up")[0])


async def test_bad_rows_keep_their_index(gateway: Gateway) -> None:
    body = b'text\ngood\n\n\n"quoted ""well"""\ntwo,fields\n\xff\xfe\nnul\0\nlast\n\n\n'
    job = await submit(gateway, await put(gateway, body, "t.csv"))
    await ingest(gateway)
    await gateway.run(job["id"])
    lines = await lines_of(gateway, job["id"])
    assert [(line["index"], line.get("error", {}).get("code")) for line in lines] == [
        (0, None), (1, "empty_input"), (2, "empty_input"), (3, None), (4, "invalid_input"), (5, "invalid_input"),
        (6, "invalid_input"), (7, None),
    ]  # fmt: skip


REFUSED = [
    ("t.csv", b"", "empty_file", 400),
    ("t.csv", b"name,other\na,b\n", "unreadable_corpus", None),
    ("t.csv", b'text\n"never closed\nmore\n', "unreadable_corpus", None),
    ("t.jsonl", b"no json\nnor this\n", "no_usable_input", None),
    ("t.jsonl", b"\n\n", "no_usable_input", None),
    ("t.parquet", b"PAR1 and no more", "unreadable_corpus", None),
    ("t.parquet", parquet_of(text=[1, 2]), "unreadable_corpus", None),
    ("t.jsonl.gz", gzip.compress(jsonl())[:-9], "invalid_encoding", None),
    ("t.jsonl.zst", zstandard.compress(jsonl() * 50)[:-9], "invalid_encoding", None),
    ("t.csv", gzip.compress(b""), "unreadable_corpus", None),
    ("t.jsonl.gz", gzip.compress(b"\n" * 40_000_000), "compression_ratio_too_high", None),
    ("t.docx", b"PK\x03\x04", "unreadable_corpus", 400),
]


@pytest.mark.parametrize(
    ("filename", "body", "code", "status"), REFUSED, ids=[f"{each[0]}-{n}" for n, each in enumerate(REFUSED)]
)
async def test_a_file_that_cannot_be_read_is_refused_or_fails_its_job(
    gateway: Gateway, filename: str, body: bytes, code: str, status: int | None
) -> None:
    file_id = await put(gateway, body, filename)
    if status is not None:
        reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": file_id})
        assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (status, code, "input_file_id")
        return
    job = await submit(gateway, file_id)
    await ingest(gateway)
    job = await gateway.job(job["id"])
    assert (job["status"], [each["code"] for each in job["errors"]][-1]) == ("failed", code), job["errors"]
    assert job["errors"][-1]["message"]
    async with gateway.runtime.database.read() as connection:
        assert (await connection.execute(select(JobStep.job_id))).first() is None


async def test_the_file_must_be_the_projects_and_of_its_purpose(gateway: Gateway) -> None:
    foreign = await put(gateway, jsonl(), "t.jsonl", project="another")
    deleted = await put(gateway, jsonl(), "t.jsonl")
    async with gateway.runtime.database.write() as connection:
        await connection.execute(update(File).where(File.id == deleted).values(deleted_at=db_now()))
    for file_id in (foreign, deleted, new_file_id(), "file-x", "", "../file", "file-" + "é" * 10):
        reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": file_id})
        error = reply.json()["error"]  # as OpenAI's, it has no code
        assert (reply.status_code, error["param"], error["code"]) == (404, "input_file_id", None)
        assert error["message"] == f"No such File object: {file_id}"
    batch = await put(gateway, jsonl(), "t.jsonl", purpose="batch")
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": batch})
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_purpose")
    async with gateway.runtime.database.read() as connection:
        assert (await connection.execute(select(Job.id))).first() is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ["a"], "input_file_id": "file-1"}, "input_file_id"),
        ({"input": ["a"], "text_column": "t"}, "text_column"),
        ({"input": ["a"], "id_column": "t"}, "id_column"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"input_file_id": ["file-1"]}, "input_file_id"),
    ],
)
async def test_the_body_names_one_corpus(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    reply = await gateway.client.post(JOBS, json={"model": "tiny", **fields})
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


async def test_plain_text_has_no_columns(gateway: Gateway) -> None:
    file_id = await put(gateway, b"a\n", "t.txt")
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": file_id, "text_column": "t"})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "text_column")


@pytest.mark.parametrize(("filename", "body"), [FORMATS[0], FORMATS[3], FORMATS[6]])
async def test_a_dry_run_reads_the_file_and_stores_nothing(gateway: Gateway, filename: str, body: bytes) -> None:
    file_id = await put(gateway, body, filename)
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input_file_id": file_id, "dry_run": True})
    estimate = reply.json()
    assert (reply.status_code, estimate["object"], estimate["usable_inputs"]) == (200, "embedding.job.estimate", 3)
    async with gateway.runtime.database.read() as connection:
        assert (await connection.execute(select(Job.id))).first() is None


async def test_a_key_gives_the_same_job_again(gateway: Gateway) -> None:
    file_id = await put(gateway, jsonl(), "t.jsonl")
    body, header = {"model": "tiny", "input_file_id": file_id}, {"idempotency-key": "k"}
    first = await gateway.client.post(JOBS, json=body, headers=header)
    again = await gateway.client.post(JOBS, json=body, headers=header)
    assert (first.status_code, again.status_code, again.headers["idempotent-replayed"]) == (202, 200, "true")
    assert first.json()["id"] == again.json()["id"]
    other = await gateway.client.post(JOBS, json=body | {"metadata": {"a": "b"}}, headers=header)
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
    refused = {"model": "tiny", "input_file_id": new_file_id()}
    for _ in range(2):  # a refused request leaves the key free
        reply = await gateway.client.post(JOBS, json=refused, headers={"idempotency-key": "k2"})
        assert reply.status_code == 404
    retried = await gateway.client.post(JOBS, json=body, headers={"idempotency-key": "k2"})
    assert retried.status_code == 202


async def test_a_cancelled_job_is_not_read(gateway: Gateway) -> None:
    job = await submit(gateway, await put(gateway, jsonl(), "t.jsonl"))
    reply = await gateway.client.post(f"{JOBS}/{job['id']}/cancel")
    assert reply.json()["status"] == "cancelled"
    assert await ingest(gateway) and not await ingest(gateway)  # the step is removed
    assert (await gateway.job(job["id"]))["counts"]["completed"] == 0


async def test_a_paused_job_is_read_and_waits(gateway: Gateway) -> None:
    job = await submit(gateway, await put(gateway, jsonl(), "t.jsonl"))
    await gateway.client.post(f"{JOBS}/{job['id']}/pause")
    assert await ingest(gateway)
    job = await gateway.job(job["id"])
    assert (job["status"], job["counts"]["total"]) == ("paused", 3)
