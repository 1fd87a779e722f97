"""Keeps a set of child processes alive until a signal, then stops them in order."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from cli.errors import CliError
from cli.up.child_process import ChildProcess, dies_with_parent
from cli.up.health_check import HealthCheck

POLL_S = 0.05
MAX_EXITS_BEFORE_READY = 4  # a child that cannot start at all: a broken installation, not an accident


class StopRequested(Exception):  # a control flow, not an error
    """A signal asked for the end during a wait."""


class Supervisor:
    """Starts children in the order given; ends them by `stop_order`, the members of one group side by side."""

    def __init__(self, stop_order: Sequence[Sequence[str]], environment: dict[str, str], log_dir: Path | None) -> None:
        self.environment = environment
        self._stop_order = stop_order
        self._log_dir = log_dir  # None: the children write where we write
        self._children: dict[str, ChildProcess] = {}
        self._stop_requests = 0

    def install_signal_handlers(self) -> None:
        """Take SIGTERM, Ctrl-C and a closed terminal as the wish to stop; the second one as the wish to stop now."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored: that is nohup's wish
                signal.signal(number, self._note_stop)

    def _note_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    @property
    def _log_hint(self) -> str:
        return f"the files in {shlex.quote(str(self._log_dir))} say why" if self._log_dir else "the lines above say why"

    @property
    def stop_requested(self) -> bool:
        """True after the first signal."""
        return self._stop_requests > 0

    @property
    def is_hurried(self) -> bool:
        """True after the second signal: children are killed at once."""
        return self._stop_requests > 1

    def start(self, name: str, command: Sequence[str], *, grace_s: float, health: HealthCheck | None = None) -> None:
        """Start a child that is to live as long as we do, and to pass its health check."""
        log_file = self._log_dir / f"{name}.log" if self._log_dir else None
        child = ChildProcess(name, command, self.environment, grace_s=grace_s, log_file=log_file, health=health)
        self._children[name] = child
        child.start()

    def run_once(self, command: Sequence[str]) -> str:
        """Run a child to its end and return what it printed. Raises CliError when it fails; it has said why itself."""
        with subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=dies_with_parent(),
        ) as process:
            while True:
                try:
                    printed, _ = process.communicate(timeout=POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    if self.stop_requested:
                        process.kill()
                        raise StopRequested from None
        if process.returncode != 0:
            raise CliError("embedmill cannot start like this", "the line above says why")
        return printed

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Watch the children until `condition` holds. Raises CliError after `timeout_s`, StopRequested at a signal."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._watch()
            for child in self._children.values():
                if child.exits >= MAX_EXITS_BEFORE_READY:
                    raise CliError(f"the {child.name} process dies at every start", self._log_hint)
            if time.monotonic() >= deadline:
                raise CliError(f"{what} within {timeout_s:g} s", self._log_hint)
            time.sleep(POLL_S)

    def run(self) -> None:
        """Watch the children until a signal asks for the end."""
        try:
            while True:
                self._watch()
                time.sleep(POLL_S)
        except StopRequested:
            pass

    def _watch(self) -> None:
        if self.stop_requested:
            raise StopRequested
        for child in self._children.values():
            child.watch()

    def stop(self) -> None:
        """Stop every child: SIGTERM, then SIGKILL after its grace period or at the second signal."""
        for group in self._stop_order:
            members = [self._children[name] for name in group if name in self._children]
            for child in members:
                child.terminate()
            for child in members:
                child.wait_or_kill(lambda: self.is_hurried)
        self._children.clear()
