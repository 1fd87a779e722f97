"""A job over HTTP after it was made: polled, listed, cancelled, deleted; and nobody sees another project's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from models.key import Scope
from tests.gateway import JOBS, Gateway, error_of

UNKNOWN = "job_" + "0" * 32


async def test_a_poll_that_saw_it_already_costs_nothing(gateway: Gateway) -> None:
    job = await gateway.submit(["a", "b"])
    url = f"{JOBS}/{job['id']}"
    first = await gateway.client.get(url)
    tag = first.headers["etag"]
    for seen in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await gateway.client.get(url, headers={"if-none-match": seen})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["retry-after"]
    await gateway.run(job["id"])
    changed = await gateway.client.get(url, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["status"]) == (200, "completed")
    assert changed.headers["etag"] != tag and "retry-after" not in changed.headers


async def test_waiting_for_a_change_ends_with_the_change(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    url = f"{JOBS}/{job['id']}"
    tag = (await gateway.client.get(url)).headers["etag"]
    waiting = asyncio.create_task(gateway.client.get(url, params={"wait": 30}, headers={"if-none-match": tag}))
    await gateway.run(job["id"])
    reply = await waiting
    assert (reply.status_code, reply.json()["status"]) == (200, "completed")
    ended = await gateway.client.get(url, params={"wait": 60})  # nothing to wait for any more
    assert ended.json()["status"] == "completed"


@pytest.mark.parametrize("wait", ["61", "-1", "x", "1.5"])
async def test_a_wait_that_nobody_grants(gateway: Gateway, wait: str) -> None:
    job = await gateway.submit(["a"])
    reply = await gateway.client.get(f"{JOBS}/{job['id']}", params={"wait": wait})
    assert (reply.status_code, error_of(reply)["param"]) == (400, "wait")


async def test_pages_of_jobs_newest_first(gateway: Gateway) -> None:
    made = [(await gateway.submit(["a"]))["id"] for _ in range(5)]
    await gateway.run(made[0])
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = (await gateway.client.get(JOBS, params=query)).json()
        ids = [job["id"] for job in page["data"]]
        assert page["object"] == "list" and (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
        seen += ids
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert sorted(seen) == sorted(made) and seen == sorted(made, reverse=True)
    done = (await gateway.client.get(JOBS, params={"status": "completed"})).json()
    assert [job["id"] for job in done["data"]] == [made[0]]
    empty = (await gateway.client.get(JOBS, params={"status": "failed"})).json()
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    "query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"after": "x"}, {"status": "done"}, {"order": "asc"}]
)
async def test_lists_that_nobody_has(gateway: Gateway, query: dict[str, str]) -> None:
    reply = await gateway.client.get(JOBS, params=query)
    assert (reply.status_code, error_of(reply)["param"]) == (400, next(iter(query)))


async def test_ids_that_are_not_yours_are_one_404(gateway: Gateway) -> None:
    theirs = await gateway.another_key(project="theirs")
    job = await gateway.submit(["a"])
    calls = [("GET", ""), ("DELETE", ""), ("GET", "/results"), ("GET", "/errors")]
    calls += [("POST", f"/{verb}") for verb in ("cancel", "pause", "resume", "retry")]
    bodies = set()
    for method, tail in calls:
        for headers, job_id in ((theirs, job["id"]), ({}, UNKNOWN), ({}, "job_x"), ({}, "%00"), ({}, "..%2f..")):
            reply = await gateway.client.request(method, f"{JOBS}/{job_id}{tail}", headers=headers)
            assert reply.status_code == 404, (method, tail, job_id)
            bodies.add(reply.content if b"Unknown request" not in reply.content else b"")
    assert len(bodies - {b""}) == 1
    assert (await gateway.client.get(JOBS, headers=theirs)).json()["data"] == []
    assert (await gateway.job(job["id"]))["status"] == "in_progress"
    sibling = await gateway.another_key(project="default", scopes=[Scope.JOBS])
    assert (await gateway.client.get(f"{JOBS}/{job['id']}", headers=sibling)).status_code == 200


async def test_cancel_is_idempotent_and_a_finished_job_is_a_409(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    for _ in range(3):
        reply = await gateway.client.post(f"{JOBS}/{job['id']}/cancel")
        assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
    assert reply.json()["finished_at"] is not None and reply.json()["eta_seconds"] == 0
    assert (await gateway.run(job["id"]))["counts"]["completed"] == 0
    done = await gateway.submit(["a"])
    await gateway.run(done["id"])
    refused = await gateway.client.post(f"{JOBS}/{done['id']}/cancel")
    assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
    assert refused.headers["x-should-retry"] == "false"
    assert (await gateway.job(done["id"]))["status"] == "completed"


async def test_pause_and_resume_are_idempotent_and_a_finished_job_is_a_409(gateway: Gateway) -> None:
    job = await gateway.submit(["a", "b"])
    url = f"{JOBS}/{job['id']}"
    tags = set()
    for _ in range(2):
        reply = await gateway.client.post(f"{url}/pause")
        assert (reply.status_code, reply.json()["status"]) == (200, "paused")
        tags.add(reply.headers["etag"])
    assert len(tags) == 1 and reply.headers["retry-after"]
    body = await gateway.run(job["id"])
    assert (body["status"], body["counts"]["completed"], body["eta_seconds"]) == ("paused", 0, None)
    assert (body["waiting_on"], body["next_attempt_at"], body["rate"]["inputs_per_second"]) == (None, None, 0.0)
    assert [each["id"] for each in (await gateway.client.get(JOBS, params={"status": "paused"})).json()["data"]] == [
        job["id"]
    ]
    for sent in (b"", b"{}", b'{"max_cost_usd": 1.5}', b'{"max_cost_usd": "2"}'):
        reply = await gateway.client.post(f"{url}/resume", content=sent)
        assert (reply.status_code, reply.json()["status"]) == (200, "in_progress"), sent
    assert (await gateway.run(job["id"]))["status"] == "completed"
    for verb in ("pause", "resume", "retry"):
        refused = await gateway.client.post(f"{url}/{verb}")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "conflict")
        assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b'{"max_cost_usd": 0}', "max_cost_usd"),
        (b'{"max_cost_usd": -1}', "max_cost_usd"),
        (b'{"max_cost_usd": "NaN"}', "max_cost_usd"),
        (b'{"max_cost_usd": 1e30}', "max_cost_usd"),
        (b'{"max_cost_usd": "a lot"}', "max_cost_usd"),
        (b'{"max_cost_usd": true}', "max_cost_usd"),
        (b'{"ceiling": 1}', "ceiling"),
        (b"{", None),
    ],
)
async def test_a_ceiling_that_is_none(gateway: Gateway, sent: bytes, param: str | None) -> None:
    job = await gateway.submit(["a"])
    await gateway.client.post(f"{JOBS}/{job['id']}/pause")
    reply = await gateway.client.post(f"{JOBS}/{job['id']}/resume", content=sent)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
    assert (await gateway.job(job["id"]))["status"] == "paused"


async def test_a_resume_of_a_job_whose_budget_is_spent_is_a_409_and_it_stays_paused(gateway: Gateway) -> None:
    job = await gateway.submit(["a text"] * 4, max_cost_usd="0.000000000001")
    url = f"{JOBS}/{job['id']}"
    stopped = await gateway.run(job["id"])
    assert (stopped["status"], stopped["waiting_on"]) == ("paused", "budget")
    reply = await gateway.client.post(f"{url}/resume")
    assert (reply.status_code, error_of(reply)["code"], reply.headers["x-should-retry"]) == (409, "conflict", "false")
    assert "ceiling is 0.000000000001" in error_of(reply)["message"] and "max_cost_usd" in error_of(reply)["message"]
    same = await gateway.client.post(f"{url}/resume", json={"max_cost_usd": "0.000000000001"})
    assert (same.status_code, error_of(same)["param"]) == (400, "max_cost_usd")
    assert (await gateway.job(job["id"]))["status"] == "paused"
    reply = await gateway.client.post(f"{url}/resume", json={"max_cost_usd": "1"})
    assert (reply.status_code, reply.json()["status"]) == (200, "in_progress")


async def test_a_retry_runs_only_what_failed(gateway: Gateway) -> None:
    job = await gateway.submit(["a", "poison", "b", ""])
    url = f"{JOBS}/{job['id']}"
    done = await gateway.run(job["id"])
    assert (done["status"], done["counts"]["completed"], done["counts"]["failed"]) == ("completed_with_errors", 2, 2)
    first = (await gateway.client.get(f"{url}/results", params={"stop": 1})).content
    reply = await gateway.client.post(f"{url}/retry")
    again = reply.json()
    assert (reply.status_code, again["status"], again["finished_at"]) == (200, "in_progress", None)
    assert again["counts"] == {"total": 4, "completed": 2, "failed": 1, "pending": 1}
    assert [(each["count"], each["example_index"]) for each in again["errors"]] == [(1, 3)]
    assert again["usage"] == done["usage"]
    assert (await gateway.client.get(f"{url}/results", params={"stop": 1})).content == first
    ended = await gateway.run(job["id"])
    assert (ended["status"], ended["counts"]["failed"]) == ("completed_with_errors", 2)
    assert ended["usage"] == done["usage"], "what had its vector was paid again"


async def test_a_deleted_job_is_gone(gateway: Gateway) -> None:
    for ran in (False, True):
        job = await gateway.submit(["a"])
        if ran:
            await gateway.run(job["id"])
        url = f"{JOBS}/{job['id']}"
        reply = await gateway.client.delete(url)
        assert reply.json() == {"id": job["id"], "object": "embedding.job", "deleted": True}
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/results"), ("GET", "/errors"), ("POST", "/cancel")):
            assert (await gateway.client.request(method, url + tail)).status_code == 404
    assert (await gateway.client.get(JOBS)).json()["data"] == []
