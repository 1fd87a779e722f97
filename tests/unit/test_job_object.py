"""The job as a poll shows it: counts that add up, a rate of now, and 100 % said of a finished job only."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Row

from api.http.schemas import JobObject
from api.jobs.render import job_object
from engine.jobs.reading.job_rows import etag
from models.job import FINISHED, JobStatus

NOW = 1_800_000_000.0


def row(**given: Any) -> Row[Any]:
    """A job's row, in the middle of its work."""
    values: dict[str, Any] = {
        "id": "job_" + "0" * 32, "status": "in_progress", "alias": "m", "space": "s", "dimensions": 16,
        "total": 1000, "ingested": 1000, "completed": 400, "failed": 10, "prompt_tokens": 8200,
        "cost_usd": Decimal("0.000164"), "usage_estimated": False, "error_summary": [], "warnings": [],
        "created_at": NOW - 60, "started_at": NOW - 41.0, "finished_at": None, "expires_at": NOW + 86400,
        "waiting_on": None, "next_attempt_at": None, "outage": None,
        "rate_sample_at": NOW - 41.0, "rate_sample_done": 0, "rate_sample_tokens": 0,
        "prev_rate_sample_at": None, "prev_rate_sample_done": 0, "prev_rate_sample_tokens": 0, "version": 3,
        "metadata": {"a": "b"}, "input_type": None, "request_id": "req_1", "now": NOW, "workers_live": False,
        "max_cost_usd": None, "deduplicated": 3, "truncated": 0, "ambiguous_calls": 0, "ambiguous_inputs": 0,
        "ambiguous_tokens": 0, "ambiguous_cost_usd": Decimal(0), "wasted_calls": 1, "wasted_inputs": 2,
        "batch_id": None, "input_file_id": None, "wasted_tokens": 9, "wasted_cost_usd": Decimal("0.000001"),
    }  # fmt: skip
    assert set(given) <= set(values)
    return cast("Row[Any]", SimpleNamespace(**(values | given)))


def test_the_object_is_the_contracts() -> None:
    body = job_object(row())
    msgspec.convert(body, JobObject)
    assert set(body) == {each.name for each in msgspec.structs.fields(JobObject)}
    assert body["counts"] == {"total": 1000, "completed": 400, "failed": 10, "pending": 590}
    assert (body["progress"], body["cost_usd"], body["metadata"]) == (0.41, "0.000164", {"a": "b"})
    assert body["rate"] == {"inputs_per_second": 10.0, "tokens_per_minute": 12000}
    assert body["eta_seconds"] == 59 and body["created_at"] == int(NOW) - 60


def test_the_rate_is_of_the_last_marks_not_of_the_whole() -> None:
    marks = {
        "prev_rate_sample_at": NOW - 20,
        "prev_rate_sample_done": 10,
        "prev_rate_sample_tokens": 200,
        "rate_sample_at": NOW - 6,
    }
    assert job_object(row(**marks))["rate"] == {"inputs_per_second": 20.0, "tokens_per_minute": 24000}
    one = {"rate_sample_at": NOW - 10, "rate_sample_done": 310, "rate_sample_tokens": 7200}
    assert job_object(row(**one))["rate"] == {"inputs_per_second": 10.0, "tokens_per_minute": 6000}
    assert job_object(row(rate_sample_at=NOW - 1))["rate"]["inputs_per_second"] == 10.0  # it has only just started


@pytest.mark.parametrize("mark", [None, NOW - 1.0, NOW - 4.9])
def test_after_a_resume_there_is_no_rate_until_something_has_landed_for_a_while(mark: float | None) -> None:
    """What it did before the pause says nothing of now, and one batch of the first second says as little."""
    body = job_object(row(rate_sample_at=mark, rate_sample_done=400, rate_sample_tokens=8000))
    assert (body["rate"]["inputs_per_second"], body["eta_seconds"]) == (0.0, None)
    later = job_object(row(rate_sample_at=NOW - 5.5, rate_sample_done=300, rate_sample_tokens=8000))
    assert (later["rate"]["inputs_per_second"], later["eta_seconds"]) == (20.0, 30)


def test_a_stalled_jobs_rate_fades_and_its_tag_with_it() -> None:
    marks: dict[str, Any] = {"rate_sample_at": NOW - 6, "rate_sample_done": 410, "rate_sample_tokens": 8200}
    marks |= {"prev_rate_sample_at": NOW - 20, "prev_rate_sample_done": 10, "prev_rate_sample_tokens": 0}
    then, later = row(**marks), row(**marks, now=NOW + 100)
    assert job_object(later)["rate"]["inputs_per_second"] < job_object(then)["rate"]["inputs_per_second"]
    assert job_object(later)["eta_seconds"] > job_object(then)["eta_seconds"]
    assert etag(then) != etag(later) and etag(then) == etag(row(**marks))


def test_before_anything_ran() -> None:
    body = job_object(row(started_at=None, completed=0, failed=0, prompt_tokens=0, cost_usd=Decimal(0)))
    assert (body["progress"], body["eta_seconds"], body["started_at"], body["cost_usd"]) == (0.0, None, None, "0")
    assert body["rate"] == {"inputs_per_second": 0.0, "tokens_per_minute": 0}


def test_while_the_corpus_arrives_nobody_knows_the_end() -> None:
    body = job_object(row(total=None, ingested=500))
    assert body["counts"] == {"total": None, "completed": 400, "failed": 10, "pending": 90}
    assert (body["progress"], body["eta_seconds"], body["waiting_on"]) == (0.0, None, None)
    assert job_object(row(total=None, ingested=410))["waiting_on"] == "ingest"


def test_what_a_job_waits_for() -> None:
    body = job_object(row(waiting_on="quota", next_attempt_at=NOW + 4.6))
    assert (body["waiting_on"], body["next_attempt_at"]) == ("quota", int(NOW) + 5)
    ended = row(waiting_on="quota", next_attempt_at=NOW, status="cancelled", finished_at=NOW)
    assert (job_object(ended)["waiting_on"], job_object(ended)["next_attempt_at"]) == (None, None)


@given(st.floats(-100, 100), st.floats(0, 1))
def test_the_next_attempt_is_never_in_the_past(ahead_s: float, part: float) -> None:
    body = job_object(row(waiting_on="provider", next_attempt_at=NOW + part + ahead_s, now=NOW + part))
    assert body["waiting_on"] == "provider"
    assert (body["next_attempt_at"] is None) == (NOW + part + ahead_s <= NOW + part)
    assert body["next_attempt_at"] is None or NOW + part < body["next_attempt_at"] <= NOW + part + ahead_s + 1


def test_a_tag_changes_with_what_time_alone_changes() -> None:
    waiting: dict[str, Any] = {"waiting_on": "quota", "next_attempt_at": NOW + 4}
    assert etag(row(**waiting)) != etag(row(**waiting, now=NOW + 5))
    fresh: dict[str, Any] = {"started_at": None, "created_at": NOW - 1, "completed": 0, "failed": 0}
    assert etag(row(**fresh, workers_live=True)) != etag(row(**fresh, workers_live=True, now=NOW + 5))


def test_a_job_whose_turn_has_not_come_waits_for_fairness() -> None:
    untouched: dict[str, Any] = {"started_at": None, "completed": 0, "failed": 0, "created_at": NOW - 5}
    assert job_object(row(**untouched, workers_live=True))["waiting_on"] == "fairness"
    assert job_object(row(**untouched, workers_live=False))["waiting_on"] is None  # nobody is there to be fair
    just_made = untouched | {"created_at": NOW - 1}
    assert job_object(row(**just_made, workers_live=True))["waiting_on"] is None


def test_a_paused_job_stands_still() -> None:
    paused: dict[str, Any] = {
        "status": "paused",
        "rate_sample_at": NOW - 6,
        "rate_sample_done": 10,
        "next_attempt_at": NOW + 9,
    }
    body = job_object(row(**paused, waiting_on="quota"))
    assert body["rate"] == {"inputs_per_second": 0.0, "tokens_per_minute": 0}
    assert (body["eta_seconds"], body["waiting_on"], body["next_attempt_at"]) == (None, None, None)
    assert job_object(row(**paused, waiting_on="budget"))["waiting_on"] == "budget"
    assert etag(row(**paused)) == etag(row(**paused, now=NOW + 1000))


def test_the_time_that_is_left_includes_a_wait_for_quota() -> None:
    """It said 59 s while the next call was a minute away."""
    assert job_object(row(waiting_on="quota", next_attempt_at=NOW + 60))["eta_seconds"] == 119
    assert job_object(row(waiting_on="quota", next_attempt_at=NOW - 5))["eta_seconds"] == 59  # that wait is over
    assert job_object(row(waiting_on="concurrency"))["eta_seconds"] == 59
    assert job_object(row(next_attempt_at=NOW + 60))["eta_seconds"] == 59  # of a wait that is none any more


@pytest.mark.parametrize("waiting_on", ["provider", "database", "fairness"])
@pytest.mark.parametrize("next_attempt_at", [None, NOW + 60, NOW - 1])
def test_no_end_is_foretold_of_an_outage(waiting_on: str, next_attempt_at: float | None) -> None:
    """It said 59 s in the middle of an outage, of which nobody knows the end."""
    cause = {"provider": "a", "code": "c", "message": "m", "advice": "a", "since": NOW - 9}
    for outage in (None, cause):
        job = row(waiting_on=waiting_on, next_attempt_at=next_attempt_at, outage=outage)
        assert job_object(job)["eta_seconds"] is None


def test_no_end_is_foretold_of_a_job_that_hardly_moves() -> None:
    body = job_object(row(started_at=NOW - 10**6, completed=1, failed=0))
    assert (body["rate"]["inputs_per_second"], body["eta_seconds"]) == (0.0, None)


@pytest.mark.parametrize("status", sorted(FINISHED))
def test_a_finished_job_has_the_rate_of_its_whole_life(status: str) -> None:
    ended = {
        "status": status,
        "finished_at": NOW - 1.0,
        "completed": 990,
        "rate_sample_at": NOW - 2,
        "rate_sample_done": 989,
    }
    body = job_object(row(**ended))
    assert body["rate"]["inputs_per_second"] == 25.0 and body["eta_seconds"] == 0
    assert etag(row(**ended)) == etag(row(**ended, now=NOW + 10_000)) == '"3"'


@given(st.integers(1, 10**9), st.data())
def test_progress_is_rounded_down_and_1_is_the_end(total: int, data: st.DataObject) -> None:
    done = data.draw(st.integers(max(0, total - 3), total) | st.integers(0, total))
    failed = data.draw(st.integers(0, done))
    body = job_object(row(total=total, ingested=total, completed=done - failed, failed=failed))
    assert (body["progress"] == 1.0) == (done == total) and 0.0 <= body["progress"] <= done / total
    counts = body["counts"]
    assert counts["completed"] + counts["failed"] + counts["pending"] == total
    assert body["eta_seconds"] is None or body["eta_seconds"] >= 1


@given(st.lists(st.integers(0, 50), min_size=2, max_size=10))
def test_progress_never_goes_back_while_the_counts_do_not(steps: list[int]) -> None:
    done, seen = 0, []
    for step in steps:
        done = min(1000, done + step)
        seen.append(job_object(row(completed=done, failed=0))["progress"])
    assert seen == sorted(seen)


def test_every_change_is_another_tag() -> None:
    assert len({etag(row(version=version)) for version in range(20)}) == 20


def test_statuses_are_the_machines() -> None:
    assert {"validating", "in_progress", "paused", "cancelling"} | {str(each) for each in FINISHED} == {
        str(s) for s in JobStatus
    }
