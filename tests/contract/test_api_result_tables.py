"""Results as Parquet and Arrow: the rows are those of ndjson, in order, in every range, while the job runs too."""

from __future__ import annotations

import gzip
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.contract.test_api_results import RANGES
from tests.contract.test_api_truncated import LONG
from tests.gateway import JOBS, WIDTH, Gateway, close_gateway, error_of, open_gateway

FORMATS = ("parquet", "arrow")
BAD = {3: "poison 3", 50: "", 95: "poison 95", 99: "poison 99"}
BAD |= dict.fromkeys(range(32, 48), "poison")  # a whole shard
CUT = (0, 17, 31, 98)
TYPES = {
    "index": pa.int64(),
    "id": pa.string(),
    "embedding": pa.list_(pa.field("element", pa.float32(), nullable=False), WIDTH),
    "error_code": pa.string(),
    "error_message": pa.string(),
    "truncated": pa.bool_(),
}


def corpus() -> list[Any]:
    """A hundred inputs: bad ones, some that are cut, and two shards in which some have ids."""
    texts = [BAD.get(i, f"{LONG}{i}" if i in CUT else f"text {i}") for i in range(100)]
    with_id = {*range(0, 40, 3), 95, 98}
    return [{"id": f"id «{i}»", "text": text} if i in with_id else text for i, text in enumerate(texts)]


@pytest.fixture
async def small(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, shard_inputs=16, batch_inputs=6)
    yield gateway
    await close_gateway(gateway)


@pytest.fixture
async def job_id(small: Gateway) -> str:
    job = await small.submit(corpus(), model="fixed", truncate="end")
    assert (await small.run(job["id"]))["counts"] == {"total": 100, "completed": 80, "failed": 20, "pending": 0}
    return str(job["id"])


def read(body: bytes, format: str) -> Any:
    if format == "arrow":
        return pa.ipc.open_file(io.BytesIO(body)).read_all()
    return pq.read_table(io.BytesIO(body))


def rows(reply: httpx.Response, format: str) -> list[dict[str, Any]]:
    """The rows of a table as lines of ndjson have them."""
    table = read(reply.content, format)
    table.validate(full=True)
    assert {field.name: field.type for field in table.schema} == TYPES
    lines = []
    for row in table.to_pylist():
        line: dict[str, Any] = {"index": row["index"], "id": row["id"]}
        if row["embedding"] is None:
            line["error"] = {"code": row["error_code"], "message": row["error_message"]}
            assert None not in line["error"].values()
        else:
            line["embedding"] = np.array(row["embedding"], dtype="<f4").tobytes()
            assert row["error_code"] is row["error_message"] is None
        lines.append(line | ({"truncated": True} if row["truncated"] else {}))
    return lines


async def right(gateway: Gateway, job_id: str, **query: Any) -> list[dict[str, Any]]:
    """The lines of ndjson, without what tables do not have."""
    lines = [orjson.loads(line) for line in (await gateway.results(job_id, **query)).content.splitlines()]
    for line in lines:
        if "embedding" in line:
            line["embedding"] = np.array(line["embedding"], dtype="<f4").tobytes()
        else:
            del line["error"]["retryable"]
    return lines


@pytest.mark.parametrize("format", FORMATS)
async def test_rows_are_the_lines_of_ndjson(small: Gateway, job_id: str, format: str) -> None:
    reply = await small.results(job_id, format=format)
    found = rows(reply, format)
    assert found == await right(small, job_id) and len(found) == 100
    assert {line["index"] for line in found if "error" in line} == set(BAD)
    assert [line["index"] for line in found if "truncated" in line] == list(CUT)
    kind = {"parquet": "application/vnd.apache.parquet", "arrow": "application/vnd.apache.arrow.file"}[format]
    assert reply.headers["content-type"] == kind and reply.headers["x-embedmill-complete"] == "true"
    assert reply.headers["content-disposition"] == f'attachment; filename="{job_id}.{format}"'


@pytest.mark.parametrize("format", FORMATS)
async def test_rows_are_those_of_npy(small: Gateway, job_id: str, format: str) -> None:
    column = read((await small.results(job_id, format=format)).content, format)["embedding"]
    matrix = np.load(io.BytesIO((await small.results(job_id, format="npy")).content))
    assert np.array_equal(np.isnan(matrix).any(axis=1), column.is_null().to_numpy())
    vectors = column.drop_null().combine_chunks().flatten().to_numpy().reshape(-1, WIDTH)
    assert vectors.tobytes() == matrix[~np.isnan(matrix).any(axis=1)].tobytes()


@pytest.mark.parametrize("format", FORMATS)
async def test_ranges(small: Gateway, job_id: str, format: str) -> None:
    whole = await right(small, job_id)
    for start, stop, indexes in RANGES:
        query = {name: value for name, value in (("start", start), ("stop", stop)) if value is not None}
        reply = await small.results(job_id, format=format, **query)
        assert rows(reply, format) == whole[indexes.start : indexes.stop], query


@pytest.mark.parametrize("format", FORMATS)
async def test_while_the_job_runs(small: Gateway, format: str) -> None:
    job = await small.submit(corpus(), model="fixed", truncate="end")
    counts = []
    for number in (None, 2, 0, 6):
        if number is not None:
            await small.run(job["id"], only=slice(number, number + 1))
        reply = await small.results(job["id"], format=format)
        found = rows(reply, format)
        assert found == await right(small, job["id"])
        assert reply.headers["x-embedmill-complete"] == "false"
        counts.append(len(found))
    assert counts == [1, 17, 33, 37]  # the first was refused on arrival
    done = await small.results(job["id"], format=format, start=32, stop=48)
    assert done.headers["x-embedmill-complete"] == "true" and len(rows(done, format)) == 16


@pytest.mark.parametrize("format", FORMATS)
async def test_a_file_that_was_cut_is_refused_by_its_reader(small: Gateway, job_id: str, format: str) -> None:
    body = (await small.results(job_id, format=format)).content
    for size in (0, 8, len(body) // 2, len(body) - 9, len(body) - 1):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            read(body[:size], format)


async def test_a_table_of_no_row_is_one_of_its_schema(small: Gateway) -> None:
    job = await small.submit(["a", "b"])
    for format in FORMATS:
        assert rows(await small.results(job["id"], format=format), format) == []


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
async def test_arrow_is_compressed_for_who_takes_nothing_else_and_parquet_never(
    small: Gateway, job_id: str, coding: str
) -> None:
    for format, accepted, packed in (
        ("arrow", coding, False),
        ("arrow", f"{coding}, identity;q=0", True),
        ("parquet", f"{coding}, identity;q=0", False),
    ):
        headers = {"accept-encoding": accepted}
        async with small.client.stream(
            "GET", f"{JOBS}/{job_id}/results", params={"format": format}, headers=headers
        ) as reply:
            body = b"".join([piece async for piece in reply.aiter_raw()])
        assert reply.headers.get("content-encoding") == (coding if packed else None), (format, accepted)
        if packed:
            unpack = zstandard.ZstdDecompressor().decompressobj().decompress if coding == "zstd" else gzip.decompress
            body = unpack(body)
        assert len(read(body, format)) == 100


async def test_tables_of_another_project_are_not_found(small: Gateway, job_id: str) -> None:
    stranger = await small.another_key()
    for format in FORMATS:
        reply = await small.client.get(f"{JOBS}/{job_id}/results", params={"format": format}, headers=stranger)
        assert (reply.status_code, error_of(reply)["code"]) == (404, "job_not_found")
