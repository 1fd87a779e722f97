"""Streamed corpora as CSV and Parquet, and bodies packed with zstd: as ndjson and gzip, with columns in the query."""

from __future__ import annotations

import gzip
import io
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.gateway import JOBS, Gateway, error_of

CSV, PARQUET, NDJSON = "text/csv", "application/vnd.apache.parquet", "application/x-ndjson"


def parquet_of(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


async def send(gateway: Gateway, body: bytes, kind: str, encoding: str = "", **query: Any) -> httpx.Response:
    headers = {"content-type": kind} | ({"content-encoding": encoding} if encoding else {})
    return await gateway.client.post(JOBS, params={"model": "tiny", **query}, content=body, headers=headers)


async def run(gateway: Gateway, reply: httpx.Response) -> list[tuple[str | None, str | None]]:
    """The id of each index, and the code of its error."""
    assert reply.status_code == 202, reply.text
    await gateway.run(reply.json()["id"])
    lines = [orjson.loads(line) for line in (await gateway.results(reply.json()["id"])).content.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(lines)))
    return [(line["id"], line.get("error", {}).get("code")) for line in lines]


@pytest.mark.parametrize(
    ("body", "kind", "query"),
    [
        (b"id,text\na,one\nb,two\n", CSV, {}),
        (b"id,text\r\na,one\r\nb,two", CSV, {}),
        (b"id;text\na;one, or more\nb;two\n", CSV, {}),
        (b"sep=|\nid|text\na|one\nb|two\n", CSV, {}),
        (b"key,body,text\na,one,x\nb,two,y\n", CSV, {"text_column": "body", "id_column": "key"}),
        (b'id,text\na,"one\nline ""more"""\nb,two\n', "text/csv; charset=utf-8; header=present", {}),
        (b"id\ttext\na\tone\nb\ttwo\n", "text/tab-separated-values", {}),
        (parquet_of({"id": ["a", "b"], "text": ["one", "two"]}), PARQUET, {}),
        (parquet_of({"k": ["a", "b"], "t": [b"one", b"two"]}), PARQUET, {"text_column": "t", "id_column": "k"}),
        (b'{"k":"a","t":"one"}\n{"k":"b","t":"two"}\n', NDJSON, {"text_column": "t", "id_column": "k"}),
    ],
)
@pytest.mark.parametrize("encoding", ["", "gzip", "zstd"])
async def test_rows_become_inputs(
    gateway: Gateway, body: bytes, kind: str, query: dict[str, str], encoding: str
) -> None:
    packed = gzip.compress(body) if encoding == "gzip" else zstandard.compress(body) if encoding else body
    assert await run(gateway, await send(gateway, packed, kind, encoding, **query)) == [("a", None), ("b", None)]


async def test_a_long_table_arrives_in_many_chunks(gateway: Gateway) -> None:
    rows = "".join(f'id-{n},"text {n}, ""quoted"",\nof two lines"\n' for n in range(20_000))
    reply = await send(gateway, f"id,text\n{rows}".encode(), CSV)
    job = await gateway.run(reply.json()["id"])
    assert (job["status"], job["counts"]["completed"]) == ("completed", 20_000)
    first = (await gateway.results(job["id"], start=19_999)).json()
    assert (first["index"], first["id"]) == (19_999, "id-19999")


async def test_parquet_types_and_row_groups(gateway: Gateway) -> None:
    texts = [f"text {n % 5}" for n in range(3000)]
    table = {
        "text": pa.array(texts).dictionary_encode(),
        "id": pa.array(range(3000), pa.int64()),
        "other": pa.array([[1]] * 3000),
    }
    reply = await send(gateway, parquet_of(table, row_group_size=700, compression="zstd"), PARQUET)
    job = await gateway.run(reply.json()["id"])
    assert (job["counts"]["completed"], job["deduplicated_inputs"]) == (3000, 2995)
    assert (await gateway.results(job["id"], start=2999)).json()["id"] == "2999"


async def test_bad_rows_keep_their_index(gateway: Gateway) -> None:
    table = {"text": pa.array([b"good", None, b"\xff", b"", b"last"], pa.binary()), "id": ["a", None, "c", "d", ""]}
    assert await run(gateway, await send(gateway, parquet_of(table), PARQUET)) == [
        ("a", None), (None, "invalid_input"), ("c", "invalid_input"), ("d", "empty_input"), (None, None),
    ]  # fmt: skip
    reply = await send(gateway, b"id,text\na,good\nb\n\nc,too,many\n" + b"x" * 600 + b",t\nd,\n", CSV)
    assert await run(gateway, reply) == [
        ("a", None), (None, "invalid_input"), (None, "empty_input"), (None, "invalid_input"),
        (None, "invalid_input"), ("d", "empty_input"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "encoding", "query", "expected"),
    [
        (b"", CSV, "", {}, (400, "unreadable_corpus", "input")),
        (b"a,b\n1,2\n", CSV, "", {}, (400, "unreadable_corpus", "text_column")),
        (b"id,text\n1,2\n", CSV, "", {"text_column": "t"}, (400, "unreadable_corpus", "text_column")),
        (b"id,text\n1,2\n", CSV, "", {"id_column": "t"}, (400, "unreadable_corpus", "id_column")),
        (b"text,text\n1,2\n", CSV, "", {}, (400, "unreadable_corpus", "input")),
        (b'text\na\n"b\n', CSV, "", {}, (400, "unreadable_corpus", "input")),
        (b'text\n"a" b\n', CSV, "", {}, (400, "unreadable_corpus", "input")),
        (b'text\n"' + b"a" * 9_000_000, CSV, "", {}, (400, "unreadable_corpus", "input")),
        (b"text\n\n\n", CSV, "", {}, (400, "no_usable_input", "input")),
        (b"id,text\n1,2\n", "text/csv; charset=latin-1", "", {}, (415, "unsupported_media_type", "content-type")),
        (b"", PARQUET, "", {}, (400, "unreadable_corpus", "input")),
        (b"PAR1" + b"\0" * 100, PARQUET, "", {}, (400, "unreadable_corpus", "input")),
        (b"id,text\n", PARQUET, "", {}, (400, "unreadable_corpus", "input")),
        (parquet_of({"text": ["a"] * 9})[:-20], PARQUET, "", {}, (400, "unreadable_corpus", "input")),
        (parquet_of({"text": [1]}), PARQUET, "", {}, (400, "unreadable_corpus", "text_column")),
        (parquet_of({"a": ["x"], "b": ["y"]}), PARQUET, "", {}, (400, "unreadable_corpus", "text_column")),
        (parquet_of({"text": pa.array([], pa.string())}), PARQUET, "", {}, (400, "no_usable_input", "input")),
        (b"a\n", "text/plain", "", {"text_column": "t"}, (400, "invalid_value", "text_column")),
        (b'"a"\n', NDJSON, "zstd", {}, (400, "invalid_encoding", None)),
        (zstandard.compress(b'"a"\n' * 9)[:-3], NDJSON, "zstd", {}, (400, "invalid_encoding", None)),
        (b'"a"\n', NDJSON, "br", {}, (415, "unsupported_media_type", "content-encoding")),
        (b"x", "text/html", "", {}, (415, "unsupported_media_type", "content-type")),
    ],
)
async def test_what_cannot_be_read_is_refused(
    gateway: Gateway, body: bytes, kind: str, encoding: str, query: dict[str, str], expected: tuple[Any, ...]
) -> None:
    reply = await send(gateway, body, kind, encoding, **query)
    error = error_of(reply)
    assert (reply.status_code, error["code"], error["param"]) == expected, error
    assert (await gateway.client.get(JOBS)).json()["data"] == []


async def test_a_bomb_is_refused(gateway: Gateway) -> None:
    bomb = zstandard.compress(b"\n" * 200_000_000)
    assert len(bomb) < 30_000
    reply = await send(gateway, bomb, NDJSON, "zstd")
    assert (reply.status_code, error_of(reply)["code"]) == (413, "compression_ratio_too_high")
    wide = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=25, compression_level=3)
    ).compress(bytes(range(256)) * 200_000)
    reply = await send(gateway, wide, NDJSON, "zstd")
    assert reply.status_code == 400 and "window" in error_of(reply)["message"]


async def test_a_dictionary_of_one_long_text_is_not_multiplied(gateway: Gateway) -> None:
    """A small file whose cells are all the same megabytes."""
    text = "long " * 700_000
    cells = pa.DictionaryArray.from_arrays(np.zeros(3000, np.int32), pa.array([text]))
    body = parquet_of({"text": cells}, compression="zstd")
    assert len(body) < 100_000
    reply = await send(gateway, body, PARQUET, model="fixed")
    assert (reply.status_code, error_of(reply)["code"]) == (413, "compression_ratio_too_high")


async def test_zstd_is_taken_by_sync_calls_too(gateway: Gateway) -> None:
    body = zstandard.compress(orjson.dumps({"model": "tiny", "input": "a"}))
    headers = {"content-encoding": "zstd", "content-type": "application/json"}
    reply = await gateway.client.post("/v1/embeddings", content=body, headers=headers)
    assert reply.status_code == 200


async def test_a_dry_run_counts_rows(gateway: Gateway) -> None:
    for body, kind in ((b"text\na\nb\n", CSV), (parquet_of({"text": ["a", "b"]}), PARQUET)):
        reply = await send(gateway, body, kind, dry_run="true")
        assert (reply.status_code, reply.json()["usable_inputs"]) == (200, 2)
