"""Keeps a set of children alive until told to stop, then ends them in order."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from cli.errors import CliError
from cli.up.child_process import Child, dies_with_parent
from cli.up.health_check import HealthCheck

POLL_S = 0.05
DEATHS_BEFORE_READY = 4  # a child that cannot start at all: a broken installation, not an accident


class Stopped(Exception):  # a wish, not an error
    """Somebody asked for the end while we were waiting for something."""


class Supervisor:
    """Starts children in the order given; ends them by `stop_order`, the members of one group side by side."""

    def __init__(self, stop_order: Sequence[Sequence[str]], environment: dict[str, str], log_dir: Path | None) -> None:
        self.environment = environment
        self._stop_order = stop_order
        self._log_dir = log_dir  # None: the children write where we write
        self._children: dict[str, Child] = {}
        self._stops_asked = 0

    def listen(self) -> None:
        """Take SIGTERM, Ctrl-C and a closed terminal as the wish to stop; the second one as the wish to stop now."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored: that is nohup's wish
                signal.signal(number, self._note_stop)

    def _note_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stops_asked += 1

    @property
    def _where_to_look(self) -> str:
        return f"the files in {self._log_dir} say why" if self._log_dir else "the lines above say why"

    @property
    def stop_asked(self) -> bool:
        return self._stops_asked > 0

    @property
    def hurried(self) -> bool:
        return self._stops_asked > 1

    def start(self, name: str, command: Sequence[str], *, grace_s: float, health: HealthCheck | None = None) -> None:
        """Start a child that is to live as long as we do, and to pass its health check."""
        log_file = self._log_dir / f"{name}.log" if self._log_dir else None
        child = Child(name, command, self.environment, grace_s=grace_s, log_file=log_file, health=health)
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
                    if self.stop_asked:
                        process.kill()
                        raise Stopped from None
        if process.returncode != 0:
            raise CliError("embedmill cannot start like this", "the line above says why")
        return printed

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Watch the children until `condition` holds. Raises CliError when it never does, Stopped when told to stop."""
        gives_up_at = time.monotonic() + timeout_s
        while not condition():
            self._watch()
            for child in self._children.values():
                if child.deaths >= DEATHS_BEFORE_READY:
                    raise CliError(f"the {child.name} process dies at every start", self._where_to_look)
            if time.monotonic() >= gives_up_at:
                raise CliError(f"{what} within {timeout_s:g} s", self._where_to_look)
            time.sleep(POLL_S)

    def run(self) -> None:
        """Watch the children until told to stop."""
        try:
            while True:
                self._watch()
                time.sleep(POLL_S)
        except Stopped:
            pass

    def _watch(self) -> None:
        if self.stop_asked:
            raise Stopped
        for child in self._children.values():
            child.watch()

    def stop(self) -> None:
        """End every child, politely unless hurried. Afterwards none is left, whatever it did."""
        for group in self._stop_order:
            members = [self._children[name] for name in group if name in self._children]
            for child in members:
                child.ask_to_stop()
            for child in members:
                child.await_end(lambda: self.hurried)
        self._children.clear()
