"""The job's state machine, as drawn: nothing leaves an end, everything reaches one, and SQL and Python agree."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Dialect, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from api.http.schemas import JobObject
from engine.jobs.recording.completion import FINAL_STATUS, final_status
from models.job import FINISHED, LEGAL_MOVES, Job, JobStatus

DRAWING = Path(__file__).resolve().parents[2] / "docs" / "job_lifecycle.md"


def reachable(status: JobStatus) -> set[JobStatus]:
    found: set[JobStatus] = set()
    ahead = {status}
    while ahead:
        found |= ahead
        ahead = {target for each in ahead for target in LEGAL_MOVES[each]} - found
    return found


def test_every_status_is_in_the_machine() -> None:
    assert set(LEGAL_MOVES) == set(JobStatus)
    assert set().union(*LEGAL_MOVES.values()) | {JobStatus.VALIDATING} == set(JobStatus)


@pytest.mark.parametrize("status", JobStatus)
def test_an_end_is_an_end_and_everything_has_one(status: JobStatus) -> None:
    # What failed may be tried again, by its caller's wish; there is no other way out of an end.
    wish = {JobStatus.IN_PROGRESS} if status in (JobStatus.COMPLETED_WITH_ERRORS, JobStatus.FAILED) else set()
    assert (LEGAL_MOVES[status] == wish) == (status in FINISHED)
    assert reachable(status) & FINISHED
    assert status not in LEGAL_MOVES[status]


def test_there_is_no_way_back_but_by_resume_and_retry() -> None:
    assert all(JobStatus.VALIDATING not in targets for targets in LEGAL_MOVES.values())
    assert not LEGAL_MOVES[JobStatus.COMPLETED] and not LEGAL_MOVES[JobStatus.CANCELLED]


def test_a_job_that_runs_can_be_ended_in_every_way() -> None:
    assert reachable(JobStatus.IN_PROGRESS) >= FINISHED
    assert JobStatus.COMPLETED not in LEGAL_MOVES[JobStatus.CANCELLING]


@pytest.mark.parametrize(
    ("completed", "failed", "status"),
    [
        (5, 0, JobStatus.COMPLETED),
        (4, 1, JobStatus.COMPLETED_WITH_ERRORS),
        (0, 5, JobStatus.FAILED),
        (0, 0, JobStatus.COMPLETED),
    ],
)
def test_how_a_job_ends(completed: int, failed: int, status: JobStatus) -> None:
    assert final_status(completed, failed) == status


@given(st.integers(0, 5), st.integers(0, 5))
def test_an_end_is_one_that_the_machine_allows(completed: int, failed: int) -> None:
    assert final_status(completed, failed) in LEGAL_MOVES[JobStatus.IN_PROGRESS] & FINISHED


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect()])  # type: ignore[no-untyped-call]
def test_the_rule_is_written_in_sql_too(dialect: Dialect) -> None:
    text = str(
        select(FINAL_STATUS, literal(1))
        .select_from(Job)
        .compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    )
    order = [text.index(f"'{status}'") for status in ("completed", "failed", "completed_with_errors")]
    assert order == sorted(order) and "jobs.failed = 0" in text and "jobs.completed = 0" in text


def test_the_contract_names_every_status() -> None:
    (status,) = (each for each in msgspec.structs.fields(JobObject) if each.name == "status")
    assert set(status.type.__args__) == {str(each) for each in JobStatus}


def test_the_drawing_names_every_status() -> None:
    assert DRAWING.is_file(), "docs/job_lifecycle.md is missing: models/job.py promises it"
    text = DRAWING.read_text()
    assert [status for status in JobStatus if status not in text] == []
