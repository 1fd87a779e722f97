"""`embedmill stream` with real processes: killed, interrupted, its server killed. The output has the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import orjson
import pytest

from providers.fake.vectors import input_hash
from tests.system.processes import EMBEDMILL
from tests.system.stack import MODEL, UPSTREAM_MODEL, Stack
from tests.waiting import wait_until

LINES = 6_000
COMMAND_S = 100.0
LATENCY_MS = 250.0  # a job of some seconds
BAD_LINES = (7, 2_500, LINES - 1)

pytestmark = pytest.mark.timeout(300)


class Shell:
    """The command line in a folder of its own, with an input that has bad lines and no final line feed."""

    def __init__(self, stack: Stack, folder: Path, tag: str) -> None:
        self.stack = stack
        self.folder = folder
        self.out = folder / "out.jsonl"
        self.texts = [f"{tag} line {index}" for index in range(LINES)]
        lines = [orjson.dumps({"id": str(index), "text": text}) for index, text in enumerate(self.texts)]
        for index in BAD_LINES:
            lines[index] = b'{"id": "bad'
        (folder / "in.jsonl").write_bytes(b"\n".join(lines))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")},
            "EMBEDMILL_API_KEY": stack.key,
            "EMBEDMILL_URL": stack.url,
        }
        self.jobs_before = {row[0] for row in stack.query("select id from jobs")}

    def start(
        self, *options: str, stdin: IO[bytes] | None = None, stdout: int = subprocess.PIPE
    ) -> subprocess.Popen[bytes]:
        with (self.folder / "in.jsonl").open("rb") as file:
            return subprocess.Popen(
                [*EMBEDMILL, "stream", "--model", MODEL, *options],
                cwd=self.folder,
                env=self.environment,
                stdin=stdin or file,
                stdout=stdout,
                stderr=subprocess.PIPE,
                # A shell that put the tests into the background has them, and so their children, ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def run(self, *options: str) -> bytes:
        """The command to its end: what it wrote to stdout."""
        with self.start(*options) as process:
            written, said = process.communicate(timeout=COMMAND_S)
        assert process.returncode == 3, said
        return written

    def lines_written(self) -> int:
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def start_and_wait_for_the_middle(self) -> subprocess.Popen[bytes]:
        before = self.lines_written()
        process = self.start("--out", "out.jsonl")
        wait_until(lambda: self.lines_written() > before, 60, every_s=0.01, what="more lines")
        assert self.lines_written() < LINES
        return process

    def jobs(self) -> set[str]:
        return {row[0] for row in self.stack.query("select id from jobs")} - self.jobs_before

    def check(self) -> None:
        """One job, each text paid once, and the file is what an undisturbed run writes to stdout."""
        assert len(self.jobs()) == 1
        ours = {input_hash(text, UPSTREAM_MODEL) for text in self.texts}
        paid = [each for call in self.stack.bill() for each in call["input_hashes"] if each in ours]
        assert len(paid) == len(set(paid)) == LINES - len(BAD_LINES)
        written = self.out.read_bytes()
        assert not (self.folder / "out.jsonl.job").exists()
        lines = [orjson.loads(line) for line in written.splitlines()]
        assert [line["index"] for line in lines] == list(range(LINES))
        assert tuple(line["index"] for line in lines if "error" in line) == BAD_LINES
        assert self.run() == written
        assert len(self.jobs()) == 1


@pytest.fixture
def shell(sqlite_stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Shell]:
    sqlite_stack.latency(LATENCY_MS)
    yield Shell(sqlite_stack, tmp_path, request.node.name)
    sqlite_stack.script()


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(shell: Shell) -> None:
    for _ in range(2):
        process = shell.start_and_wait_for_the_middle()
        process.kill()
        process.communicate(timeout=COMMAND_S)
        written = shell.out.read_bytes()
        shell.out.write_bytes(written[: len(written) - 5])  # as when it is killed within a line
    shell.run("--out", "out.jsonl")
    shell.check()


def test_ctrl_c_and_then_resume_without_the_input(shell: Shell) -> None:
    process = shell.start_and_wait_for_the_middle()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 1
    [job_id] = shell.jobs()
    assert f"`embedmill stream --resume {job_id} --out out.jsonl` writes the rest".encode() in said
    environment = shell.environment
    resumed = subprocess.run(
        [*EMBEDMILL, "stream", "--resume", job_id, "--out", "out.jsonl"],
        cwd=shell.folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=COMMAND_S,
    )
    assert resumed.returncode == 3, resumed.stderr
    shell.check()


def test_an_api_that_is_killed_in_the_middle_costs_no_line(shell: Shell) -> None:
    process = shell.start_and_wait_for_the_middle()
    shell.stack.restart("api")
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 3, said
    shell.check()


def test_a_pipe_that_is_killed_is_the_same_job_when_it_is_run_again(shell: Shell) -> None:
    def through_a_pipe() -> subprocess.Popen[bytes]:
        with subprocess.Popen(["cat", "in.jsonl"], cwd=shell.folder, stdout=subprocess.PIPE) as cat:
            return shell.start("--out", "out.jsonl", stdin=cat.stdout)

    process = through_a_pipe()
    wait_until(lambda: 0 < shell.lines_written() < LINES, 60, every_s=0.01, what="the first lines")
    process.kill()
    process.communicate(timeout=COMMAND_S)
    process = through_a_pipe()
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 3, said
    shell.check()


def test_a_reader_that_goes_away_ends_the_command_and_not_the_job(shell: Shell) -> None:
    process = shell.start()
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(b'{"index":0,')
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(COMMAND_S) == 1
    assert b"stdout was closed" in said and b"Traceback" not in said
    [job_id] = shell.jobs()
    shell.stack.await_end(job_id, 60)
    shell.run("--out", "out.jsonl")
    shell.check()
