"""A supervised child process: started, watched, restarted and stopped; it never outlives its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from cli.up.health_check import HealthCheck

log = logging.getLogger("embedmill.up")

PR_SET_PDEATHSIG = 1
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
HEALTHY_AFTER_S = 30.0
POLL_S = 0.05
ABORT_WAIT_S = 2.0


class Backoff:
    """The pause before the next start; it doubles while a child exits soon after its start."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def pause_s(self, uptime_s: float) -> float:
        """The pause after a run of `uptime_s` seconds; a run of HEALTHY_AFTER_S resets the backoff."""
        if uptime_s >= HEALTHY_AFTER_S:
            self._next_s = FIRST_PAUSE_S
        pause = self._next_s
        self._next_s = min(self._next_s * 2, MAX_PAUSE_S)
        return pause


class ChildProcess:
    """One process in a session of its own, so that the terminal's Ctrl-C and our signals do not mix."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        grace_s: float,
        log_file: Path | None,
        health: HealthCheck | None = None,
    ) -> None:
        self.name = name
        self.grace_s = grace_s  # from SIGTERM to SIGKILL
        self.exits = 0
        self._command = list(command)
        self._environment = dict(environment)
        self._log_file = log_file
        self._health = health
        self._backoff = Backoff()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_due_at = 0.0

    @property
    def pid(self) -> int | None:
        """The process id; None between two starts."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process."""
        with self._log_file.open("ab") if self._log_file else nullcontext() as output:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )
        self._started_at = time.monotonic()
        if self._health is not None:
            self._health.reset()

    def watch(self) -> None:
        """Notice an exit, and restart the process once the pause is over."""
        if self._process is None:
            if time.monotonic() >= self._start_due_at:
                self.start()
                log.warning("%s started again", self.name, extra={"pid_of_child": self.pid})
            return
        if self._health is not None and self._health.is_hanging:
            self._kill_hanging(self._health.url)
        status = self._process.poll()
        if status is None:
            return
        self._kill_group()  # its own children must not run beside its successor
        self.exits += 1
        pause_s = self._backoff.pause_s(time.monotonic() - self._started_at)
        self._start_due_at = time.monotonic() + pause_s
        log.warning(
            "%s %s; starting it again in %g s", self.name, how_ended(status), pause_s, extra={"pid_of_child": self.pid}
        )
        self._process = None

    def _kill_hanging(self, url: str) -> None:
        """Kill it. Python processes of ours write where they hang into their log when they get SIGABRT."""
        assert self._process is not None
        log.error("%s does not answer %s any more and is killed", self.name, url, extra={"pid_of_child": self.pid})
        self._process.send_signal(signal.SIGABRT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ABORT_WAIT_S)
        self._kill_group()
        self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM, when it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_or_kill(self, is_hurried: Callable[[], bool]) -> None:
        """Wait until it exits, `grace_s` is over, or `is_hurried` returns True; then kill it."""
        if self._process is None:
            return
        deadline = time.monotonic() + self.grace_s
        while self._process.poll() is None and time.monotonic() < deadline and not is_hurried():
            time.sleep(POLL_S)
        if self._process.poll() is None:
            log.warning("%s did not stop in time and is killed", self.name, extra={"pid_of_child": self.pid})
        self._kill_group()
        self._process.wait()
        self._process = None

    def _kill_group(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):  # nobody left (macOS says it with EPERM)
                os.killpg(self._process.pid, signal.SIGKILL)


def dies_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` that makes the kernel kill the child when this process dies in any way (Linux only)."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec as little as possible may happen
    parent = os.getpid()

    def prepare() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return prepare


def how_ended(status: int) -> str:
    """`exited with status 1` or `was killed by SIGKILL`."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
