"""`embedmill embed` that is interrupted in mid-upload: the same command again goes on with the same job."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from providers.fake import fake_vectors
from providers.fake.vectors import input_hash
from tests.system.processes import EMBEDMILL
from tests.system.proxy import Proxy
from tests.system.stack import MODEL, UPSTREAM_MODEL, WIDTH, Stack
from tests.waiting import wait_until

LINES = 12_000
BYTES_PER_S = 400_000.0
COMMAND_S = 100.0

pytestmark = pytest.mark.timeout(300)


class Terminal:
    """The command line in a folder of its own, with a slow line to the API."""

    def __init__(self, stack: Stack, folder: Path, tag: str) -> None:
        self.stack = stack
        self.folder = folder
        self.texts = [f"{tag} line {index} {'of a corpus that takes a while ' * 3}" for index in range(LINES)]
        (folder / "texts.txt").write_text("\n".join(self.texts) + "\n")
        address = urlsplit(stack.url)
        self.line = Proxy(address.hostname or "", address.port or 0)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")},
            "EMBEDMILL_API_KEY": stack.key,
            "EMBEDMILL_URL": f"http://127.0.0.1:{self.line.port}",
        }
        self.jobs_before = {row[0] for row in stack.query("select id from jobs")}

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [*EMBEDMILL, "embed", "texts.txt", "--out", "v.npy", "--model", MODEL, *options]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that put the tests into the background has them, and so their children, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def run(self, *options: str) -> str:
        """The command to its end: what it printed to the terminal."""
        with self.start(*options) as process:
            _, said = process.communicate(timeout=COMMAND_S)
        assert process.returncode == 0, said
        return said

    def start_and_wait_for_the_middle(self, *options: str) -> subprocess.Popen[str]:
        self.line.to_server.bytes_per_s = BYTES_PER_S
        process = self.start(*options)
        wait_until(lambda: self.half_sent(), 60, every_s=0.02, what="the middle of the upload")
        return process

    def half_sent(self) -> bool:
        return any(total is None and 0 < ingested < LINES for _, total, ingested in self.jobs())

    def jobs(self) -> list[tuple[str, int | None, int]]:
        rows = self.stack.query("select id, total, ingested from jobs")
        return [(row[0], row[1], row[2]) for row in rows if row[0] not in self.jobs_before]

    def check(self) -> None:
        """One job, each text paid once, and row i is the vector of line i."""
        [(job_id, total, _)] = self.jobs()
        job = self.stack.job(job_id)
        assert (total, job["status"], job["counts"]["completed"]) == (LINES, "completed", LINES)
        ours = {input_hash(text, UPSTREAM_MODEL) for text in self.texts}
        paid = [each for call in self.stack.bill() for each in call["input_hashes"] if each in ours]
        assert len(paid) == len(set(paid)) == LINES
        vectors = np.load(self.folder / "v.npy")
        assert np.array_equal(vectors, fake_vectors(self.texts, WIDTH, UPSTREAM_MODEL))


@pytest.fixture
def terminal(sqlite_stack: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    terminal = Terminal(sqlite_stack, tmp_path, request.node.name)
    yield terminal
    terminal.line.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_same_command_again_goes_on_with_the_upload(terminal: Terminal, how: signal.Signals) -> None:
    process = terminal.start_and_wait_for_the_middle()
    process.send_signal(how)
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode != 0
    if how is signal.SIGINT:
        assert "run it again: what has arrived is not paid twice" in said
    terminal.line.to_server.clear()
    terminal.run()
    terminal.check()


def test_an_api_that_is_killed_under_the_upload_costs_nothing(terminal: Terminal) -> None:
    """The command outwaits it by itself; and where it is ended too, the same command again goes on."""
    process = terminal.start_and_wait_for_the_middle()
    terminal.stack.processes.kill("api")
    process.kill()
    process.communicate(timeout=COMMAND_S)
    terminal.stack.processes.start("api")
    terminal.stack.await_ready()
    terminal.line.to_server.clear()
    terminal.run()
    terminal.check()


def test_a_command_outwaits_an_api_that_is_killed(terminal: Terminal) -> None:
    process = terminal.start_and_wait_for_the_middle()
    terminal.line.to_server.clear()
    terminal.stack.restart("api")
    _, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, said
    terminal.check()


def test_new_starts_a_second_job(terminal: Terminal) -> None:
    terminal.run()
    assert "is this file with these options" in terminal.run()
    assert len(terminal.jobs()) == 1
    terminal.run("--new")
    assert len(terminal.jobs()) == 2
