"""Bulk jobs over HTTP: submitted in every form, and what makes no job."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import orjson
import pytest

from api.http.schemas import JobObject
from tests.gateway import JOBS, Gateway, error_of

UNKNOWN = "job_" + "0" * 32


async def test_a_job_from_json(gateway: Gateway) -> None:
    given = ["a", [1, 2], {"id": "x", "text": "c"}, {"id": 7, "text": [3]}]
    reply = await gateway.client.post(
        JOBS, json={"model": "tiny", "input": given, "metadata": {"a": "b"}, "dimensions": 8}
    )
    job = reply.json()
    assert reply.status_code == 202
    assert reply.headers["location"] == f"{JOBS}/{job['id']}" and re.fullmatch("job_[0-9a-f]{32}", job["id"])
    assert 1 <= int(reply.headers["retry-after"]) <= 60 and reply.headers["etag"]
    msgspec.convert(job, JobObject)
    assert (job["object"], job["status"], job["model"], job["space"]) == (
        "embedding.job",
        "in_progress",
        "tiny",
        "fake/tiny",
    )
    assert job["counts"] == {"total": 4, "completed": 0, "failed": 0, "pending": 4}
    assert (job["dimensions"], job["metadata"], job["progress"], job["errors"]) == (8, {"a": "b"}, 0.0, [])
    assert job["request_id"] == reply.headers["x-request-id"]
    assert job["finished_at"] is None and job["created_at"] < job["expires_at"]


@pytest.mark.parametrize("given", ["one text", [1, 2, 3]])
async def test_one_input_is_a_corpus_too(gateway: Gateway, given: Any) -> None:
    assert (await gateway.submit(given))["counts"]["total"] == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "body", "total"),
    [
        ("application/x-ndjson", b'"a"\n[1,2]\n{"id":"x","text":"c"}\n', 3),
        ("application/x-ndjson; charset=utf-8", b'"a"\n"b"', 2),
        ("application/jsonl", b'\xef\xbb\xbf"a"\r\n"b"\r\n', 2),
        ("text/plain", b"a\nb\xe2\x80\xa8still b\nc", 3),
    ],
)
async def test_a_job_from_a_stream(gateway: Gateway, kind: str, body: bytes, total: int, packed: bool) -> None:
    reply = await gateway.stream(gzip.compress(body) if packed else body, kind)
    assert reply.status_code == 202, reply.text
    assert reply.json()["counts"] == {"total": total, "completed": 0, "failed": 0, "pending": total}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
async def test_plain_text_that_is_not_utf8_is_never_embedded_letter_by_letter(gateway: Gateway, encoding: str) -> None:
    body = "hello there\nsecond line\n".encode(encoding)
    reply = await gateway.stream(body, f"text/plain; charset={encoding.upper()}")
    assert reply.status_code == 415 and "UTF-8" in reply.json()["error"]["message"]
    reply = await gateway.stream(b"first\n" + body, "text/plain")
    assert reply.status_code == 202, reply.text
    assert (reply.json()["counts"]["pending"], reply.json()["errors"][0]["code"]) == (1, "invalid_input")


async def test_options_of_a_stream_are_in_the_query(gateway: Gateway) -> None:
    reply = await gateway.stream(
        b'"a"\n', dimensions=4, truncate="end", user="u", metadata='{"k":"v"}', input_type="query"
    )
    assert (reply.json()["dimensions"], reply.json()["metadata"]) == (4, {"k": "v"})


async def test_a_bad_line_is_its_own_indexs_error(gateway: Gateway) -> None:
    lines = [b'"a"', b"{", b"", b"null", b'{"id":"me","text":""}', b'["x"]', b"[-1]", b'"ok"', b'"' + b"x" * 200 + b'"']
    reply = await gateway.stream(b"\n".join(lines), model="fixed")
    assert reply.status_code == 202, reply.text
    job = reply.json()
    assert job["counts"] == {"total": 9, "completed": 0, "failed": 6, "pending": 3}
    by_code = {error["code"]: (error["count"], error["example_index"]) for error in job["errors"]}
    assert by_code == {"invalid_json": (2, 1), "invalid_input": (3, 3), "empty_input": (1, 4)}
    errors = [
        orjson.loads(line) for line in (await gateway.client.get(f"{JOBS}/{job['id']}/errors")).content.splitlines()
    ]
    assert [error["index"] for error in errors] == [1, 2, 3, 4, 5, 6] and errors[3]["id"] == "me"
    assert all(set(error) == {"index", "id", "error"} for error in errors)
    assert all(set(error["error"]) == {"code", "message", "retryable"} for error in errors)
    done = await gateway.run(job["id"])
    assert (done["status"], done["counts"]["completed"], done["progress"]) == ("completed_with_errors", 3, 1.0)


@pytest.mark.parametrize("body", [b"", b"\n\n", b"{\n", b'""\n', b"\xef\xbb\xbf"])
async def test_a_corpus_without_a_usable_line_is_no_job(gateway: Gateway, body: bytes) -> None:
    reply = await gateway.stream(body)
    assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (400, "no_usable_input", "input")
    assert (await gateway.client.get(JOBS)).json()["data"] == []


async def test_a_gzip_stream_that_is_cut_off_is_no_job(gateway: Gateway) -> None:
    reply = await gateway.stream(gzip.compress(b'"a"\n' * 1000)[:-4])
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_encoding")
    jobs = (await gateway.client.get(JOBS)).json()["data"]
    assert [job["status"] for job in jobs] in ([], ["failed"])


PACKED = gzip.compress(b"".join(b'"text %d"\n' % (i * 7919) for i in range(20_000)))


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (PACKED[: len(PACKED) * 3 // 4], f"cut off after {len(PACKED) * 3 // 4:,} bytes"),
        (PACKED[:-3], f"cut off after {len(PACKED) - 3:,} bytes"),  # in the checksum
        (PACKED[:60_000] + bytes(100) + PACKED[60_100:], "is damaged behind the first"),
        (PACKED[:-8] + bytes(8), "is damaged behind the first"),  # the checksum itself
    ],
    ids=["cut", "cut in the checksum", "damaged", "another checksum"],
)
async def test_a_broken_gzip_stream_is_the_reason_of_its_job(
    gateway: Gateway, body: bytes, reason: str, headers: dict[str, str]
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for low in range(0, len(body), 16_384):
            yield body[low : low + 16_384]

    sent = {"content-type": "application/x-ndjson", "content-encoding": "gzip", **headers}
    reply = await gateway.client.post(f"{JOBS}?model=tiny", content=chunks(), headers=sent)
    [job] = (await gateway.client.get(JOBS)).json()["data"]
    [error] = [each for each in job["errors"] if not each["count"]]  # the others are of lines that were damaged too
    assert (job["status"], error["code"]) == ("failed", "invalid_encoding")
    assert reason in error["message"] and reason in error_of(reply)["message"]
    assert job["id"] in error_of(reply)["message"] and job["id"] not in error["message"]


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"model": "nope"}, "model", "model_not_found"),
        ({"dimensions": "17"}, "dimensions", "invalid_value"),
        ({"dimensions": "x"}, "dimensions", "invalid_type"),
        ({"truncate": "start"}, "truncate", "invalid_value"),
        ({"metadata": "[1]"}, "metadata", "invalid_value"),
        ({"metadata": '{"a":1}'}, "metadata", "invalid_value"),
        ({"dimension": "4"}, "dimension", "unknown_parameter"),
    ],
)
async def test_bad_options_of_a_stream(gateway: Gateway, query: dict[str, str], param: str, code: str) -> None:
    reply = await gateway.stream(b'"a"\n', **query)
    assert (error_of(reply)["param"], error_of(reply)["code"]) == (param, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": "a", "metadata": {"k" * 65: "v"}}, "metadata"),
        ({"input": "a", "metadata": {str(i): "v" for i in range(17)}}, "metadata"),
        ({"input": "a", "metadata": {"k": 1}}, "metadata"),
        ({"input": "a", "unheard_of": 1}, "unheard_of"),
    ],
)
async def test_bad_json_makes_no_job(gateway: Gateway, fields: dict[str, Any], param: str) -> None:
    reply = await gateway.client.post(JOBS, json={"model": "tiny", **fields})
    assert reply.status_code == 400 and error_of(reply)["param"].startswith(param)
    assert (await gateway.client.get(JOBS)).json()["data"] == []
