"""A child that hangs is ended and started again, as one that has died is."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path

import pytest

from cli.up.child_process import ChildProcess
from cli.up.health_check import HealthCheck
from tests.waiting import wait_until

# Answers until the file is there; then its only thread stands still, as an event loop does in a function that is slow.
SERVER = """
import faulthandler, http.server, os, sys
faulthandler.enable()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        while os.path.exists(sys.argv[2]):
            pass
        self.send_response(int(sys.argv[3]))
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def started(folder: Path, *, status: int = 200, start_s: float = 60.0) -> ChildProcess:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    child = ChildProcess(
        "server",
        [sys.executable, "-c", SERVER, str(port), str(folder / "hang"), str(status)],
        os.environ,
        grace_s=1.0,
        log_file=folder / "log",
        health=HealthCheck(
            f"http://127.0.0.1:{port}/healthz", every_s=0.05, timeout_s=0.5, failures=3, start_s=start_s
        ),
    )
    child.start()
    return child


def end(child: ChildProcess) -> None:
    child.terminate()
    child.wait_or_kill(lambda: True)


def watched_until_restarted(child: ChildProcess, first: int | None) -> bool:
    child.watch()
    return child.pid not in (None, first)


@pytest.mark.parametrize("stops", [False, True], ids=["busy", "stopped"])
def test_a_child_that_hangs_is_started_again(tmp_path: Path, stops: bool) -> None:
    child = started(tmp_path)
    first = child.pid
    assert first is not None and child._health is not None
    wait_until(lambda: child._health._has_answered, 60)  # type: ignore[union-attr]
    if stops:
        os.kill(first, signal.SIGSTOP)
    else:
        (tmp_path / "hang").touch()
    wait_until(lambda: child._health.is_hanging, 60)  # type: ignore[union-attr]
    child.watch()
    (tmp_path / "hang").unlink(missing_ok=True)
    wait_until(lambda: watched_until_restarted(child, first), 60)
    assert child.exits == 1
    if not stops:
        assert "do_GET" in (tmp_path / "log").read_text(), "the log says where it hung"
    wait_until(lambda: child._health._has_answered, 60)  # type: ignore[union-attr]
    child.watch()
    assert child.exits == 1, "what is known of the first one does not count against the second"
    end(child)


def test_a_child_that_answers_with_a_refusal_lives(tmp_path: Path) -> None:
    child = started(tmp_path, status=503)
    wait_until(lambda: child._health._has_answered, 60)  # type: ignore[union-attr]
    child.watch()
    assert child.exits == 0 and not child._health.is_hanging  # type: ignore[union-attr]
    end(child)


def test_a_child_that_never_answers_is_started_again_too(tmp_path: Path) -> None:
    (tmp_path / "hang").touch()
    child = started(tmp_path, start_s=0.5)
    wait_until(lambda: watched_until_restarted(child, None) and child.exits == 1, 60)
    end(child)
