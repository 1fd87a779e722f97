"""A corpus in a process of its own: from its stdin, and in bounded memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_cli_file_kinds import PIPED

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for the peak of a process's memory")
def test_memory_stays_flat_over_a_line_of_600_mb(tmp_path: Path) -> None:
    """The peak of a process that reads such a line is below 200 MB: the line itself would take 600 MB or more."""
    path = tmp_path / "t.txt.gz"
    path.write_bytes(gzip.compress(b"x" * 1_000_000) * 600 + gzip.compress(b"\nshort\n"))
    script = (
        "import sys; from pathlib import Path; from cli.files.open_corpus import open_corpus\n"
        "lines = [len(line) for line in open_corpus(Path(sys.argv[1])).lines()]\n"
        "peak = [line for line in open('/proc/self/status') if line.startswith('VmHWM')][0]\n"
        "print(len(lines), peak.split()[1])"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    count, peak_kib = map(int, done.stdout.split())
    assert count == 2
    assert peak_kib < 200_000


def from_stdin(content: bytes, options: dict[str, Any], preamble: str = "") -> subprocess.CompletedProcess[bytes]:
    script = (
        f"{preamble}\nimport sys; from pathlib import Path; from cli.files.open_corpus import open_corpus\n"
        f"corpus = open_corpus(Path('-'), **{options!r})\n"
        "list(corpus.lines()); sys.stdout.buffer.writelines(corpus.lines())"
    )
    command = [sys.executable, "-c", script]
    return subprocess.run(command, input=content, capture_output=True, check=False, cwd=ROOT)


@pytest.mark.parametrize(("content", "options", "expected"), [PIPED[1], PIPED[4], PIPED[5]])
def test_stdin_is_a_pipe(content: bytes, options: dict[str, Any], expected: list[str]) -> None:
    values = [json.loads(line) for line in from_stdin(content, options).stdout.splitlines()]
    assert [value["text"] if isinstance(value, dict) else value for value in values] == expected


def test_a_pipe_that_does_not_tell_what_it_holds_needs_a_format() -> None:
    assert b"nothing tells what stdin holds (give --format" in from_stdin(b"a text\n", {}).stderr


def test_a_pipe_that_finds_no_room_says_where_it_looked() -> None:
    done = from_stdin(b"a\n", {"format": "txt"}, "import tempfile; tempfile.tempdir = '/nonexistent/folder'")
    assert b"set TMPDIR" in done.stderr
