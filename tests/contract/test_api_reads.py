"""What polls and lists read: never a job's options, which may be long, and of which neither shows anything."""

from __future__ import annotations

import re

import pytest

from tests.gateway import JOBS, Gateway

OPTIONS = {"fake": {"user_tag": "y" * 15_000}}
READS = [
    "{job}",
    "{job}?wait=1",
    "?limit=100",
    "?status=completed",
    "?after={after}",
    "{job}/results",
    "{job}/results?format=npy",
    "{job}/errors",
]
IN_OPTIONS = re.compile(r"\boptions\b|SELECT \*|jobs\.\*")


@pytest.mark.parametrize("read", READS)
async def test_no_poll_and_no_list_reads_the_options(gateway: Gateway, statements: list[str], read: str) -> None:
    job = await gateway.submit(["a"], providerOptions=OPTIONS)
    await gateway.run(job["id"])
    assert [each for each in statements if IN_OPTIONS.search(each)]  # a worker does: the pattern finds it
    statements.clear()
    path = read.format(job=f"/{job['id']}", after="job_" + "f" * 32)
    assert (await gateway.client.get(JOBS + path)).status_code == 200
    assert [each for each in statements if "jobs" in each]
    assert not [each for each in statements if IN_OPTIONS.search(each)]


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
async def test_nor_does_what_is_done_to_a_job(gateway: Gateway, statements: list[str], verb: str) -> None:
    job = await gateway.submit(["a"], providerOptions=OPTIONS)
    statements.clear()
    reply = await gateway.client.post(f"{JOBS}/{job['id']}/{verb}")
    assert reply.status_code == 200, reply.text
    assert not [each for each in statements if IN_OPTIONS.search(each)]
