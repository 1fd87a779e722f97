"""Processes that a test starts, kills and starts again, by name. None outlives its test, however that ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cli.up.child_process import dies_with_parent

ROOT = Path(__file__).resolve().parents[2]
EMBEDMILL = (sys.executable, "-m", "cli")
GRACE_S = 30.0
LOG_LINES = 30


class Processes:
    """Each in a session of its own, which goes with it; its output goes to `<folder>/<name>.log`."""

    def __init__(self, folder: Path, settings: Mapping[str, str], **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not re.match("EMBEDMILL_|CELERY_", name)}
        self._environment = kept | environment | _named(settings)
        self._folder = folder
        self._commands: dict[str, Sequence[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str] = (), **settings: str) -> None:
        """Start it; without a command, as it was started before. `settings` are this start's alone."""
        self._commands[name] = command or self._commands[name]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._commands[name],
                cwd=ROOT,
                env=self._environment | _named(settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    def run(self, *arguments: str) -> str:
        """Run a command of ours to its end; what it printed."""
        ran = subprocess.run(
            [*EMBEDMILL, *arguments],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def kill(self, name: str) -> None:
        """kill -9, and what it leaves behind, as a supervisor does."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def terminate(self, name: str) -> int:
        """SIGTERM, and the exit status when it is through."""
        process = self._running[name]
        process.terminate()
        try:
            status = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name} did not end within {GRACE_S:g} s of SIGTERM\n{self.log_of(name)}") from None
        self.kill(name)
        return status

    def revive(self) -> None:
        """Start again what has ended, by itself or by us."""
        for name in [*self._commands]:
            process = self._running.get(name)
            if process is None or process.poll() is not None:
                if process is not None:
                    self.kill(name)
                self.start(name)

    def has_ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def forget(self, name: str) -> None:
        """It has ended for good: no revival."""
        self._commands.pop(name, None)

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def children(self, name: str) -> list[int]:
        main = self.pid(name)
        return [int(pid) for pid in Path(f"/proc/{main}/task/{main}/children").read_text().split()]

    def check(self) -> None:
        """Raise AssertionError when one of them has ended by itself."""
        for name, process in self._running.items():
            assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.log_of(name)}"

    def log_of(self, name: str) -> str:
        """The last lines it wrote."""
        path = self._folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:]) if path.exists() else ""

    def close(self) -> None:
        """End all of them, the last one started first."""
        for name in reversed([*self._running]):
            self.kill(name)


def _named(settings: Mapping[str, str]) -> dict[str, str]:
    return {f"EMBEDMILL_{name}": value for name, value in settings.items()}
