"""How a command ends: the code that scripts see, and the one line that people see."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from cli.__main__ import exit_code_of, run
from cli.client.responses import raise_for_error
from cli.client.types import Job
from cli.errors import CODES, CliError, Failure, UsageError
from models.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CliError("it broke", "mend it"), 1, "error: it broke (mend it)\n"),
        (UsageError("no such thing"), 2, "error: no such thing\n"),
        (ConfigError("unknown setting X"), 1, "error: unknown setting X\n"),
        (KeyboardInterrupt(), 1, "error: interrupted\n"),
        (
            PermissionError(13, "Permission denied", "/x"),
            1,
            "error: /x: you have no right to (see the mode and owner of the file and its folder)\n",
        ),
        (
            ZeroDivisionError("two\nlines"),
            1,
            "error: ZeroDivisionError: two lines (EMBEDMILL_LOG_LEVEL=DEBUG shows where)\n",
        ),
    ],
)
def test_an_error_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EMBEDMILL_LOG_LEVEL", raising=False)
    assert exit_code_of(lambda: raising(error)) == code
    said = capsys.readouterr()
    assert said.err.startswith(line)
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_LOG_LEVEL", "debug")
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: raising(ZeroDivisionError()))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["embed", "--help"], 0),
        (["jobs", "results", "--help"], 0),
        (["nope"], 2),
        (["embed"], 2),
        (["embed", "x.txt", "--dimensions", "0"], 2),
        (["embed", "x.txt", "--truncate", "start"], 2),
        (["up", "--port", "70000"], 2),
        (["jobs", "pause", "job_1"], 1),
        (["keys", "create", "--scope", "root"], 2),
        (["keys", "list"], 1),  # there is no database here
        (["jobs", "list"], 1),  # nor a server
        (["keys", "revoke", "nope"], 1),
        (["providers", "test", "nope"], 2),
        (["embed", "nope.txt", "--url", "http://127.0.0.1:9"], 2),
        (["up", "--host", "300.1.1.1"], 2),
        (["jobs", "list", "--url", "localhost:8080"], 2),
    ],
)
def test_codes(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("EMBEDMILL_URL", "EMBEDMILL_API_KEY", "EMBEDMILL_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMBEDMILL_DATA_DIR", str(tmp_path))
    assert run(arguments) == code
    assert "Traceback" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", list(Failure))
def test_each_way_to_fail_has_one_code(failure: Failure) -> None:
    """The table as docs/operations.md prints it. One kind of failure ended with 1 here and with 2 there."""
    usage = {Failure.COMMAND_LINE, Failure.NOT_FOUND}
    assert CODES[failure] == (2 if failure in usage else 3 if failure is Failure.INPUT_ERRORS else 1)
    assert CliError("x", failure=failure).code == CODES[failure]
    assert f"| {int(CODES[failure])} | {failure} |" in (ROOT / "docs" / "operations.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("status", "code", "param", "exit_code"),
    [
        (404, "job_not_found", "id", 1),
        (404, "model_not_found", "model", 2),
        (404, "not_found", None, 1),
        (400, "invalid_webhook_url", "url", 2),
        (400, "invalid_type", "metadata.team", 2),
        (400, "invalid_value", "expires_after[seconds]", 2),
        (400, "invalid_value", "completion_window", 2),
        (400, "invalid_value", "dimensions", 2),
        (400, "invalid_value", "max_cost_usd", 2),
        (400, "invalid_value", "input_type", 2),
        (400, "no_usable_input", "input", 1),
        (400, "invalid_input", "input[3]", 1),
        (401, "invalid_api_key", None, 1),
        (403, "missing_scope", None, 1),
        (409, "conflict", None, 1),
        (422, "idempotency_key_reused", "idempotency-key", 1),
        (429, "rate_limit_exceeded", None, 1),
        (503, "no_route_available", None, 1),
    ],
)
def test_what_the_server_refuses_ends_as_what_we_refuse(
    status: int, code: str, param: str | None, exit_code: int
) -> None:
    """A width that cannot be ended with 1, for the server said so; a model that is not there with 2, for we did."""
    error = {"error": {"message": "m", "type": "t", "param": param, "code": code}}
    request = httpx.Request("GET", "http://127.0.0.1/v1")
    with pytest.raises(CliError) as raised:
        raise_for_error(httpx.Response(status, json=error, request=request))
    assert raised.value.code == exit_code


@pytest.mark.parametrize(
    ("status", "code"),
    [("completed", 0), ("completed_with_errors", 3), ("failed", 1), ("cancelled", 1), ("expired", 1)],
)
def test_how_a_job_ends_is_how_its_command_ends(status: str, code: int) -> None:
    job = Job(id="job_1", status=status)
    assert job.finished
    assert job.exit_code == code


def test_every_question_of_a_command_is_asked_by_the_one_function_that_names_yes() -> None:
    for file in (ROOT / "cli").glob("*.py"):
        assert "typer.confirm" not in file.read_text(), file


@pytest.mark.parametrize(
    "action", ["show", "wait", "pause", "resume", "retry", "cancel", "delete", "results", "errors"]
)
@pytest.mark.parametrize("job_id", ["", " ", "../../models", "job_1/../2", "job_1?x=1", "job_1#x", "%2e%2e"])
def test_what_is_no_job_id_reaches_no_other_path(action: str, job_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unset $JOB above all."""
    assert run(["jobs", action, job_id, "--url", "http://127.0.0.1:9"]) == 2
    assert "is no job's id" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["files", "show"],
        ["files", "download"],
        ["files", "delete"],
        ["batches", "show"],
        ["batches", "wait"],
        ["batches", "cancel"],
        ["batches", "download"],
        ["webhooks", "show"],
        ["webhooks", "delete"],
        ["webhooks", "rotate"],
        ["webhooks", "test"],
        ["webhooks", "deliveries"],
        ["webhooks", "replay"],
        ["stream", "--resume"],
    ],
)
@pytest.mark.parametrize("text", ["", " ", "../../models", "file-1/../2", "batch_1?x=1", "%2e%2e"])
def test_what_is_no_id_reaches_no_other_path(command: list[str], text: str) -> None:
    assert run([*command, text, "--url", "http://127.0.0.1:9"]) == 2
