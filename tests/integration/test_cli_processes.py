"""Commands as processes of their own: what they import, print and need before they do anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli_fake_api import FakeApi, serving
from tests.unit.test_cli_trust import OURS

ROOT = Path(__file__).resolve().parents[2]


def test_help_comes_quickly() -> None:
    """Help must not import what takes long; the clock is not asked, because a busy machine says nothing about it."""
    script = "import sys; from cli.__main__ import run; code = run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert "typer" in loaded
    assert not {"httpx", "sqlalchemy", "fastapi", "celery", "numpy", "pyarrow"} & loaded


def test_a_worker_without_a_temporary_folder_ends_with_one_line(tmp_path: Path) -> None:
    script = (
        "import sys, tempfile; from cli.__main__ import run\n"
        "tempfile._get_default_tempdir = lambda: (_ for _ in ()).throw(FileNotFoundError(2, 'none'))\n"
        "sys.exit(run(['worker']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: no temporary folder is writable (set TMPDIR to one that is)\n"


@pytest.mark.parametrize("stdin", ["", "y\n"])
def test_a_question_that_nobody_can_be_asked_names_the_option_that_answers_it(tmp_path: Path, stdin: str) -> None:
    """A script's stdin is no terminal, whatever is in it; nothing is deleted, and no server is asked."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", "jobs", "delete", "job_1", "--url", "http://127.0.0.1:9"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--yes" in done.stderr and "nothing was done" in done.stderr and done.stderr.count("\n") == 1


def test_the_case_of_the_report_prints_no_key(tmp_path: Path) -> None:
    api = FakeApi()
    with serving(api) as url:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "EMBEDMILL_URL": url}
        for key in (f"{OURS}\r", f"em\r{OURS}"):
            done = subprocess.run(
                [sys.executable, "-m", "cli", "models"],
                env=environment | {"EMBEDMILL_API_KEY": key},
                cwd=tmp_path,
                capture_output=True,
                check=False,
            )
            assert b"Secret" not in done.stdout + done.stderr
            assert done.returncode == (2 if key.startswith("em\r") else 0)
    assert {request.headers["authorization"] for request in api.requests} == {f"Bearer {OURS}"}


def test_a_piece_without_tables_says_one_line_and_waits_for_them(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    environment |= {"EMBEDMILL_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cli", "scheduler"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as piece:
        assert piece.stderr is not None
        first = piece.stderr.readline()
        assert first == "the database has no tables yet: run `embedmill migrate`; the scheduler starts when it has\n"
        piece.terminate()
        assert piece.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []
