"""The guard of work that goes on: what it reports, what it survives, and what it lets pass."""

from __future__ import annotations

import asyncio
import logging

import pytest

from engine.process.background import ErrorLog, logging_errors, surviving
from models.errors import StorageBlocked, StorageRefused, StorageUnavailable


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), StorageUnavailable("away"), StopIteration()])
def test_an_error_of_any_class_ends_the_block_and_nothing_else(error: Exception) -> None:
    reported: list[Exception] = []
    with surviving(reported.append) as block:
        raise error
    assert reported == [error] and block.error is error


def test_a_block_without_an_error_has_none() -> None:
    with surviving() as block:
        pass
    assert block.error is None


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1)])
def test_cancellation_and_the_end_of_the_process_pass(error: BaseException) -> None:
    reported: list[Exception] = []
    with pytest.raises(type(error)), surviving(reported.append):
        raise error
    assert reported == []


@pytest.mark.parametrize("error", [StorageUnavailable("away"), StorageBlocked("no table")])
def test_an_error_that_may_pass_is_raised_and_not_reported(error: Exception) -> None:
    reported: list[Exception] = []
    with pytest.raises(type(error)) as raised, surviving(reported.append, passing=StorageUnavailable) as block:
        raise error
    assert raised.value is error and reported == [] and block.error is None


def test_a_report_that_fails_is_not_survived() -> None:
    def report(error: Exception) -> None:
        raise LookupError from error

    with pytest.raises(LookupError), surviving(report):
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), StorageRefused("too large")])
def test_a_fault_is_logged_once_with_its_traceback_and_fields(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with logging_errors("a duty failed", job_id="job_1") as block:
        raise error
    [record] = caplog.records
    assert (record.levelno, record.getMessage(), record.__dict__["job_id"]) == (logging.ERROR, "a duty failed", "job_1")
    assert record.exc_info is not None and record.exc_info[1] is error is block.error
    assert error.__traceback__ is not None


def test_an_unavailable_database_is_the_callers_to_handle(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StorageUnavailable), logging_errors("a duty failed"):
        raise StorageUnavailable("away")
    assert caplog.records == []


def test_a_series_of_errors_is_one_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    errors = ErrorLog("reading the clock")
    for _ in range(3):
        with errors.round() as this:
            raise ZeroDivisionError
        assert isinstance(this.error, ZeroDivisionError)
    with errors.round() as this:
        pass
    assert this.error is None
    assert [record.getMessage() for record in caplog.records] == [
        "reading the clock failed and is tried again",
        "reading the clock works again",
    ]
