"""Bulk jobs over HTTP: submit in every form, poll, list, cancel, delete; and nobody sees another project's."""

from __future__ import annotations

import asyncio
import gzip
import re
from typing import Any

import msgspec
import orjson
import pytest

from api.schemas import JobObject
from models.key import Scope
from tests.mill import JOBS, Mill, error_of

UNKNOWN = "job_" + "0" * 32


async def test_a_job_from_json(mill: Mill) -> None:
    given = ["a", [1, 2], {"id": "x", "text": "c"}, {"id": 7, "text": [3]}]
    reply = await mill.client.post(
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
async def test_one_input_is_a_corpus_too(mill: Mill, given: Any) -> None:
    assert (await mill.submit(given))["counts"]["total"] == 1


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
async def test_a_job_from_a_stream(mill: Mill, kind: str, body: bytes, total: int, packed: bool) -> None:
    reply = await mill.stream(gzip.compress(body) if packed else body, kind)
    assert reply.status_code == 202, reply.text
    assert reply.json()["counts"] == {"total": total, "completed": 0, "failed": 0, "pending": total}


async def test_options_of_a_stream_are_in_the_query(mill: Mill) -> None:
    reply = await mill.stream(
        b'"a"\n', dimensions=4, truncate="end", user="u", metadata='{"k":"v"}', input_type="query"
    )
    assert (reply.json()["dimensions"], reply.json()["metadata"]) == (4, {"k": "v"})


async def test_a_bad_line_is_its_own_indexs_error(mill: Mill) -> None:
    lines = [b'"a"', b"{", b"", b"null", b'{"id":"me","text":""}', b'["x"]', b"[-1]", b'"ok"', b'"' + b"x" * 200 + b'"']
    reply = await mill.stream(b"\n".join(lines), model="fixed")
    assert reply.status_code == 202, reply.text
    job = reply.json()
    assert job["counts"] == {"total": 9, "completed": 0, "failed": 6, "pending": 3}
    by_code = {error["code"]: (error["count"], error["example_index"]) for error in job["errors"]}
    assert by_code == {"invalid_json": (2, 1), "invalid_input": (3, 3), "empty_input": (1, 4)}
    errors = [orjson.loads(line) for line in (await mill.client.get(f"{JOBS}/{job['id']}/errors")).content.splitlines()]
    assert [error["index"] for error in errors] == [1, 2, 3, 4, 5, 6] and errors[3]["id"] == "me"
    assert all(set(error) == {"index", "id", "error"} for error in errors)
    assert all(set(error["error"]) == {"code", "message", "retryable"} for error in errors)
    done = await mill.run(job["id"])
    assert (done["status"], done["counts"]["completed"], done["progress"]) == ("completed_with_errors", 3, 1.0)


@pytest.mark.parametrize("body", [b"", b"\n\n", b"{\n", b'""\n', b"\xef\xbb\xbf"])
async def test_a_corpus_without_a_usable_line_is_no_job(mill: Mill, body: bytes) -> None:
    reply = await mill.stream(body)
    assert (reply.status_code, error_of(reply)["code"], error_of(reply)["param"]) == (400, "no_usable_input", "input")
    assert (await mill.client.get(JOBS)).json()["data"] == []


async def test_a_gzip_stream_that_is_cut_off_is_no_job(mill: Mill) -> None:
    reply = await mill.stream(gzip.compress(b'"a"\n' * 1000)[:-4])
    assert (reply.status_code, error_of(reply)["code"]) == (400, "invalid_encoding")
    jobs = (await mill.client.get(JOBS)).json()["data"]
    assert [job["status"] for job in jobs] in ([], ["failed"])


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
async def test_bad_options_of_a_stream(mill: Mill, query: dict[str, str], param: str, code: str) -> None:
    reply = await mill.stream(b'"a"\n', **query)
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
async def test_bad_json_makes_no_job(mill: Mill, fields: dict[str, Any], param: str) -> None:
    reply = await mill.client.post(JOBS, json={"model": "tiny", **fields})
    assert reply.status_code == 400 and error_of(reply)["param"].startswith(param)
    assert (await mill.client.get(JOBS)).json()["data"] == []


async def test_a_poll_that_saw_it_already_costs_nothing(mill: Mill) -> None:
    job = await mill.submit(["a", "b"])
    url = f"{JOBS}/{job['id']}"
    first = await mill.client.get(url)
    tag = first.headers["etag"]
    for seen in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await mill.client.get(url, headers={"if-none-match": seen})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["retry-after"]
    await mill.run(job["id"])
    changed = await mill.client.get(url, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "completed")
    assert changed.headers["etag"] != tag and "retry-after" not in changed.headers


async def test_waiting_for_a_change_ends_with_the_change(mill: Mill) -> None:
    job = await mill.submit(["a"])
    url = f"{JOBS}/{job['id']}"
    tag = (await mill.client.get(url)).headers["etag"]
    waiting = asyncio.create_task(mill.client.get(url, params={"wait": 30}, headers={"if-none-match": tag}))
    await mill.run(job["id"])
    reply = await waiting
    assert (reply.status_code, reply.json()["status"]) == (200, "completed")
    ended = await mill.client.get(url, params={"wait": 60})  # nothing to wait for any more
    assert ended.json()["status"] == "completed"


@pytest.mark.parametrize("wait", ["61", "-1", "x", "1.5"])
async def test_a_wait_that_nobody_grants(mill: Mill, wait: str) -> None:
    job = await mill.submit(["a"])
    reply = await mill.client.get(f"{JOBS}/{job['id']}", params={"wait": wait})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "wait")


async def test_pages_of_jobs_newest_first(mill: Mill) -> None:
    made = [(await mill.submit(["a"]))["id"] for _ in range(5)]
    await mill.run(made[0])
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await mill.client.get(JOBS, params=query)).json()
        ids = [job["id"] for job in page["data"]]
        assert page["object"] == "list" and (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        seen += ids
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert sorted(seen) == sorted(made) and seen == sorted(made, reverse=True)
    done = (await mill.client.get(JOBS, params={"status": "completed"})).json()
    assert [job["id"] for job in done["data"]] == [made[0]]
    empty = (await mill.client.get(JOBS, params={"status": "failed"})).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"after": "x"}, {"status": "done"}, {"order": "asc"}]
)
async def test_lists_that_nobody_has(mill: Mill, query: dict[str, str]) -> None:
    reply = await mill.client.get(JOBS, params=query)
    assert (reply.status_code, error_of(reply)["param"]) == (400, next(iter(query)))


async def test_ids_that_are_not_yours_are_one_404(mill: Mill) -> None:
    theirs = await mill.another_key(project="theirs")
    job = await mill.submit(["a"])
    calls = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/results"), ("GET", "/errors")]
    bodies = set()
    for method, tail in calls:
        for headers, job_id in ((theirs, job["id"]), ({}, UNKNOWN), ({}, "job_x"), ({}, "%00"), ({}, "..%2f..")):
            reply = await mill.client.request(method, f"{JOBS}/{job_id}{tail}", headers=headers)
            assert reply.status_code == 404, (method, tail, job_id)
            bodies.add(reply.content if b"Unknown request" not in reply.content else b"")
    assert len(bodies - {b""}) == 1
    assert (await mill.client.get(JOBS, headers=theirs)).json()["data"] == []
    assert (await mill.job(job["id"]))["status"] == "in_progress"
    sibling = await mill.another_key(project="default", scopes=[Scope.JOBS])
    assert (await mill.client.get(f"{JOBS}/{job['id']}", headers=sibling)).status_code == 200


async def test_cancel_is_idempotent_and_a_finished_job_is_a_409(mill: Mill) -> None:
    job = await mill.submit(["a"])
    for _ in range(3):
        reply = await mill.client.post(f"{JOBS}/{job['id']}/cancel")
        assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
    assert reply.json()["finished_at"] is not None and reply.json()["eta_seconds"] == 0
    assert (await mill.run(job["id"]))["counts"]["completed"] == 0
    done = await mill.submit(["a"])
    await mill.run(done["id"])
    refused = await mill.client.post(f"{JOBS}/{done['id']}/cancel")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
    assert refused.headers["x-should-retry"] == "false"
    assert (await mill.job(done["id"]))["status"] == "completed"


async def test_a_deleted_job_is_gone(mill: Mill) -> None:
    for ran in (False, True):
        job = await mill.submit(["a"])
        if ran:
            await mill.run(job["id"])
        url = f"{JOBS}/{job['id']}"
        reply = await mill.client.delete(url)
        assert reply.json() == {"id": job["id"], "object": "embedding.job", "deleted": True}
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/results"), ("GET", "/errors"), ("POST", "/cancel")):
            assert (await mill.client.request(method, url + tail)).status_code == 404
    assert (await mill.client.get(JOBS)).json()["data"] == []
