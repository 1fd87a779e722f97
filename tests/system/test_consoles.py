"""What a console cannot show, or nobody reads, never ends a command; what was asked for and is lost does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli_fake_api import JOB_ID, FakeApi, serving

ROOT = Path(__file__).resolve().parents[2]
CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii, strict": {"PYTHONIOENCODING": "ascii:strict"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no home": {},
    "no color": {"NO_COLOR": "1", "TERM": "dumb"},
    "one column": {"COLUMNS": "1", "LINES": "1"},
    "forced colors": {"FORCE_COLOR": "1", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"},
}


@pytest.fixture
def api() -> Iterator[FakeApi]:
    api = FakeApi()
    with serving(api) as api.url:
        yield api


def run(
    api: FakeApi,
    folder: Path,
    *arguments: str,
    redirect: str = "",
    stdin: bytes = b"",
    console: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """A command of ours in a shell, so that its streams can be closed."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    if console == CONSOLES["no home"]:
        ours.pop("HOME", None)
    environment = (console or {}) | {"PYTHONPATH": str(ROOT), "EMBEDMILL_URL": api.url, "EMBEDMILL_API_KEY": "em_key"}
    script = f'set -o pipefail; "$0" -m cli "$@" {redirect}'
    command = ["bash", "-c", script, sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env=ours | environment, input=stdin, capture_output=True, check=False, timeout=60
    )


@pytest.mark.parametrize("console", CONSOLES)
def test_every_console_sees_the_end_of_its_command(api: FakeApi, tmp_path: Path, console: str) -> None:
    (tmp_path / "ok.jsonl").write_text('"one"\n"two"\n')
    done = run(api, tmp_path, "embed", "ok.jsonl", "--out", "o.npy", console=CONSOLES[console])
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "o.npy").shape == (2, 4)
    assert b"o.npy" in done.stdout


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("arguments", [["--help"], ["jobs", "show", JOB_ID], ["models"]])
def test_help_and_tables_too(api: FakeApi, tmp_path: Path, console: str, arguments: list[str]) -> None:
    api.bodies.append(b'"one"\n')
    done = run(api, tmp_path, *arguments, console=CONSOLES[console])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout


def test_json_stays_json_on_a_console_of_ascii(api: FakeApi, tmp_path: Path) -> None:
    api.models = ["modèle-😀"]
    done = run(api, tmp_path, "models", "--json", console=CONSOLES["ascii"])
    assert json.loads(done.stdout)["data"][0]["id"] == "modèle-😀"


@pytest.mark.parametrize("redirect", ["| true", ">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full"])
def test_the_vectors_are_written_whoever_reads_the_summary(api: FakeApi, tmp_path: Path, redirect: str) -> None:
    (tmp_path / "ok.jsonl").write_text('"one"\n"two"\n')
    done = run(api, tmp_path, "embed", "ok.jsonl", "--out", "o.npy", redirect=redirect)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "o.npy").shape == (2, 4)


@pytest.mark.parametrize(
    ("redirect", "says"), [(">&-", b"stdout is closed"), ("> /dev/full", b"the disk is full"), ("| true", b"")]
)
def test_vectors_that_go_nowhere_are_an_error(api: FakeApi, tmp_path: Path, redirect: str, says: bytes) -> None:
    (tmp_path / "ok.jsonl").write_bytes(b'"one"\n' * 20_000)
    done = run(api, tmp_path, "embed", "ok.jsonl", "--out", "-", redirect=redirect)
    assert done.returncode == 1
    assert says in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_pipe_in_and_a_pipe_out(api: FakeApi, tmp_path: Path) -> None:
    done = run(api, tmp_path, "embed", "-", "--format", "txt", stdin="één\ntwee\n".encode())
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1]
    assert done.stderr.startswith(b"model tiny\n")
    assert api.inputs == ["één", "twee"]


def test_process_substitution_and_dev_stdin(api: FakeApi, tmp_path: Path) -> None:
    for place in ("<(printf 'a\\nb\\n')", "/dev/stdin"):
        script = f"embed --format txt --out v.npy {place}".split(" ", 1)
        done = run(api, tmp_path, script[0], redirect=script[1], stdin=b"a\nb\n")
        assert done.returncode == 0, done.stderr
        assert api.inputs == ["a", "b"]


def test_errors_of_inputs_with_odd_names_are_listed(api: FakeApi, tmp_path: Path) -> None:
    api.bodies.append('{"id":"naïve-😀","text":""}\n'.encode())
    done = run(api, tmp_path, "jobs", "errors", JOB_ID, console=CONSOLES["ascii"])
    assert done.returncode == 0
    assert done.stdout == b"0 na\\u00efve-\\ud83d\\ude00 invalid_input: no\n"
