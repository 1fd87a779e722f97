"""`embedmill jobs pause` and `resume` say what they have changed, and what lets the job go on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli_fake_api import JOB_ID, FakeApi, serving


def ran(api: FakeApi, *arguments: str) -> subprocess.CompletedProcess[str]:
    with serving(api) as url:
        command = [sys.executable, "-m", "cli", "jobs", *arguments, "--url", url, "--api-key", "em_key"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)


def printed(api: FakeApi, *arguments: str) -> str:
    """What the command prints, in one line."""
    result = ran(api, *arguments)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("status", "ceiling", "options", "effect"),
    [
        ("in_progress", "1.0000", ["--max-cost", "2.50"], ": it was not paused; ceiling $1 → $2.5"),
        ("in_progress", None, ["--max-cost", "2.50"], ": it was not paused; ceiling none → $2.5"),
        ("in_progress", "30", ["--max-cost", "0.000001"], ": it was not paused; ceiling $30 → $0.000001"),
        ("in_progress", "30", ["--max-cost", "30"], ": it was not paused"),
        ("in_progress", "30", [], ": it was not paused"),
        ("paused", "1", ["--max-cost", "2"], ": ceiling $1 → $2"),
        ("paused", "1", [], ""),
    ],
)
def test_a_resume_says_what_it_has_changed(status: str, ceiling: str | None, options: list[str], effect: str) -> None:
    api = FakeApi()
    api.status, api.max_cost_usd = status, ceiling
    assert printed(api, "resume", JOB_ID, *options) == f"{JOB_ID} is in_progress{effect}"


@pytest.mark.parametrize(
    ("waiting_on", "ceiling", "option"),
    [
        ("budget", "1", " --max-cost USD"),
        ("budget", None, " --max-cost USD"),
        (None, "0.0246", " --max-cost USD"),  # paused by its caller when all had been spent: a plain resume gets a 409
        (None, "0.0247", ""),
        (None, None, ""),
        ("provider", "1", ""),
    ],
)
def test_a_pause_advises_the_resume_that_works(waiting_on: str | None, ceiling: str | None, option: str) -> None:
    api = FakeApi()
    api.status, api.waiting_on, api.max_cost_usd = "in_progress", waiting_on, ceiling
    hint = f"`embedmill jobs resume {JOB_ID}{option}` lets it go on"
    assert printed(api, "pause", JOB_ID) == f"{JOB_ID} is paused: {hint}"


@pytest.mark.parametrize("command", ["wait", "errors", "results"])
def test_what_has_ended_a_job_is_named_and_counts_no_inputs(command: str) -> None:
    api = FakeApi()
    api.status = "failed"
    reason = {"code": "invalid_encoding", "count": 0, "example_index": None, "message": "the gzip stream is cut off"}
    api.end_reasons = [reason]
    said = ran(api, command, JOB_ID).stderr
    assert "the gzip stream is cut off" in said and "0 ×" not in said
