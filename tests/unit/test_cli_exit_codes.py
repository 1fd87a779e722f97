"""How a command ends: the code that scripts see, and the one line that people see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.__main__ import exit_code_of, run
from cli.errors import CliError, UsageError
from cli.job import Job
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
            "error: PermissionError: [Errno 13] Permission denied: '/x'",
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
        (["embed", "--help"], 0),
        (["jobs", "results", "--help"], 0),
        (["nope"], 2),
        (["embed"], 2),
        (["embed", "x.txt", "--dimensions", "0"], 2),
        (["embed", "x.txt", "--truncate", "start"], 2),
        (["up", "--port", "70000"], 2),
        (["jobs", "pause", "job_1"], 2),
        (["keys", "create", "--scope", "root"], 2),
        (["keys", "list"], 1),  # there is no database here
        (["jobs", "list"], 2),  # nor a server
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


@pytest.mark.parametrize(
    ("status", "code"),
    [("completed", 0), ("completed_with_errors", 3), ("failed", 1), ("cancelled", 1), ("expired", 1)],
)
def test_how_a_job_ends_is_how_its_command_ends(status: str, code: int) -> None:
    job = Job(id="job_1", status=status)
    assert job.finished
    assert job.exit_code == code


def test_help_comes_quickly() -> None:
    """Help must not import the engine: what it may load is counted, and the best of three runs is timed loosely.

    In seconds of its processor: a machine that is busy with other things says nothing about the command.
    """
    script = "import sys; from cli.__main__ import run; code = run(['--help']); print(*sys.modules, file=sys.stderr)"
    times_s = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        after = os.times()
        times_s.append(after.children_user - before.children_user + after.children_system - before.children_system)
    assert not {"httpx", "sqlalchemy", "fastapi", "celery", "numpy", "pyarrow"} & set(done.stderr.split())
    assert min(times_s) < 1.0
