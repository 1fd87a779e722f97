"""What a refused caller is told to do next."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from engine.config.suggestions import did_you_mean
from engine.job_store import JobStore
from engine.jobs.allowed_actions import ALLOWED_ACTIONS
from engine.jobs.composition import dispatcher_of
from engine.jobs.control import pause_resume, retry, termination
from models.errors import Conflict
from models.job import JobStatus
from models.key import Scope
from tests.gateway import JOBS, Gateway, error_of

PATH = "/v1/embeddings"
leaving_nothing = pytest.mark.asyncio(loop_scope="session")


@leaving_nothing
@pytest.mark.parametrize(
    ("name", "expected"),
    [("tinny", "Did you mean 'tiny'?"), ("Fixed", "Did you mean 'fixed'?"), ("openai/shrt", "GET /v1/models"),
     ("nothing-like-it", "GET /v1/models"), ("t" * 5000, "GET /v1/models")],
)  # fmt: skip
async def test_an_unknown_model_names_what_is_near(shared_gateway: Gateway, name: str, expected: str) -> None:
    """It said "The model `tinny` does not exist or you do not have access to it." and no more."""
    for reply in (
        await shared_gateway.embed("a", model=name),
        await shared_gateway.client.post(JOBS, json={"model": name, "input": "a"}),
        await shared_gateway.stream(b'"a"', model=name),
        await shared_gateway.client.get(f"/v1/models/{name}"),
    ):
        assert reply.status_code == 404 and expected in error_of(reply)["message"]
        assert len(error_of(reply)["message"]) < 500


@leaving_nothing
@pytest.mark.parametrize(
    ("fields", "expected"),
    [({"dimensons": 4}, "Did you mean 'dimensions'?"), ({"inputtype": "query"}, "Did you mean 'input_type'"),
     ({"dry_run": True}, "POST /v1/embeddings/jobs"), ({"temperature": 1}, "known are model, input"),
     ({"seed": 1}, "providerOptions.<provider>.seed"),
     ({"provider_options": {}}, "Did you mean 'providerOptions'?")],
)  # fmt: skip
async def test_an_unknown_parameter_names_what_is_near(shared_gateway: Gateway, fields: Any, expected: str) -> None:
    """It said "Unknown parameter: 'dimensons'." and no more."""
    reply = await shared_gateway.embed("a", **fields)
    assert error_of(reply)["code"] == "unknown_parameter" and expected in error_of(reply)["message"]


@leaving_nothing
async def test_an_unknown_parameter_of_a_job_or_a_query(shared_gateway: Gateway) -> None:
    client = shared_gateway.client
    body = await client.post(JOBS, json={"model": "tiny", "input": "a", "max_cost": 1})
    assert "Did you mean 'max_cost_usd'?" in error_of(body)["message"]
    encoded = await client.post(JOBS, json={"model": "tiny", "input": "a", "encoding_format": "base64"})
    assert "/results" in error_of(encoded)["message"]
    query = await shared_gateway.stream(b'"a"', dimension=4)
    assert "Did you mean 'dimensions'?" in error_of(query)["message"]
    listed = await client.get(JOBS, params={"limits": 3})
    assert "Did you mean 'limit'?" in error_of(listed)["message"]
    steered = await client.post(f"{JOBS}/x/pause", params={"reason": "x"})
    assert "takes none" in error_of(steered)["message"]


async def test_a_verb_that_the_status_forbids_names_those_that_it_allows(gateway: Gateway) -> None:
    """It said "Cannot pause a job with status 'completed'." and no more."""
    job = await gateway.submit(["a", "b"])
    early = error_of(await gateway.client.post(f"{JOBS}/{job['id']}/retry"))
    assert early["message"].endswith("Possible with this status: pause, cancel, delete.")
    await gateway.run(job["id"])
    for verb in ("pause", "resume", "cancel"):
        reply = await gateway.client.post(f"{JOBS}/{job['id']}/{verb}")
        message = error_of(reply)["message"]
        assert (reply.status_code, reply.headers["x-should-retry"]) == (409, "false")
        assert "'completed'" in message and "results can be read" in message and message.endswith(": delete.")


@pytest.mark.parametrize("status", list(JobStatus))
async def test_the_verbs_that_are_named_are_possible(gateway: Gateway, status: JobStatus) -> None:
    from sqlalchemy import update

    from models.job import Job

    dispatcher = dispatcher_of(gateway.runtime)
    verbs: dict[str, Callable[[JobStore, str, str], Awaitable[None]]] = {
        "pause": pause_resume.pause,
        "resume": partial(pause_resume.resume, dispatcher=dispatcher),
        "cancel": termination.cancel,
        "retry": partial(retry.retry, dispatcher=dispatcher),
    }
    for name, verb in verbs.items():
        job = await gateway.submit(["good", "poison"])
        await gateway.run(job["id"])
        async with gateway.runtime.database.write() as connection:
            await connection.execute(update(Job).where(Job.id == job["id"]).values(status=status, max_cost_usd=None))
        done_already = {("pause", "paused"), ("resume", "in_progress"), ("resume", "validating"),
                        ("cancel", "cancelled"), ("cancel", "cancelling")}  # fmt: skip
        allowed = name in ALLOWED_ACTIONS[status][0] or (name, str(status)) in done_already
        try:
            await verb(gateway.runtime.store, "default", job["id"])
            assert allowed, (name, status)
        except Conflict as error:
            assert not allowed, (name, status, error.message)


async def test_a_missing_scope_says_how_to_get_it(gateway: Gateway) -> None:
    """It said which scope, and not how to get a key that has it."""
    headers = await gateway.another_key(scopes=(Scope.EMBEDDINGS,))
    for reply in (await gateway.client.get(JOBS, headers=headers), await gateway.client.post(JOBS, headers=headers)):
        message = error_of(reply)["message"]
        assert reply.status_code == 403 and error_of(reply)["code"] == "missing_scope"
        assert "scope 'jobs', and has embeddings" in message and "embedmill keys create --scope jobs" in message


@leaving_nothing
@pytest.mark.parametrize("job_id", ["x", "job_" + "0" * 32])
async def test_a_job_that_is_not_found(shared_gateway: Gateway, job_id: str) -> None:
    """It said "No job found with this id." and no more."""
    for path in ("", "/results", "/errors"):
        message = error_of(await shared_gateway.client.get(f"{JOBS}/{job_id}{path}"))["message"]
        assert "GET /v1/embeddings/jobs lists" in message


@leaving_nothing
async def test_an_encoding_that_is_not_taken_says_which_is(shared_gateway: Gateway) -> None:
    headers = {"content-type": "application/json", "content-encoding": "br"}
    for path in (PATH, JOBS):
        message = error_of(await shared_gateway.client.post(path, content=b"x", headers=headers))["message"]
        assert "with gzip" in message and "without this header" in message


@leaving_nothing
async def test_an_input_that_is_too_long_names_truncate(shared_gateway: Gateway) -> None:
    """It said "maximum input length is 32 tokens" and no more."""
    long = "word and word " * 40
    sync = error_of(await shared_gateway.embed(["a", long], model="fixed"))
    assert sync["param"] == "input[1]" and "truncate=end" in sync["message"]
    assert (await shared_gateway.embed(["a", long], model="fixed", truncate="end")).status_code == 200
    job = await shared_gateway.submit(["a", long], model="fixed")
    assert "truncate=end" in job["errors"][0]["message"]


@leaving_nothing
async def test_a_path_that_is_near_is_named(shared_gateway: Gateway) -> None:
    assert "'/v1/embeddings'" in error_of(await shared_gateway.client.post("/v1/embedding"))["message"]
    assert "'/v1/models'" in error_of(await shared_gateway.client.get("/v1/model"))["message"]
    assert "Use POST" in error_of(await shared_gateway.client.get(PATH))["message"]


def test_suggestions_are_bounded() -> None:
    assert did_you_mean("modle", ["model", "input"]) == " Did you mean 'model'?"
    assert did_you_mean("a" * 65, ["a" * 65]) == ""
    assert did_you_mean("", ["a"]) == "" and did_you_mean("a", []) == ""
