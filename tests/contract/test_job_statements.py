"""Statements that a small job does not need are not sent."""

from __future__ import annotations

from tests.gateway import Gateway


async def test_a_job_that_has_finished_looks_for_no_blocked_shards(gateway: Gateway, statements: list[str]) -> None:
    job = await gateway.submit(["a text"])
    assert (await gateway.run(job["id"]))["status"] == "completed"
    assert not [statement for statement in statements if "WHERE shards.blocked_by = ?" in statement]


async def test_one_read_tells_the_window_and_the_jobs_whose_deferral_is_over(
    gateway: Gateway, statements: list[str]
) -> None:
    await gateway.submit(["a text"])
    reads = [statement for statement in statements if "jobs.not_before <=" in statement]
    assert reads
    assert all("workers.slots" in statement for statement in reads)
