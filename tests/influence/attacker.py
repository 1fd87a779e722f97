"""The hostile caller as a process of its own, so that its work delays nothing but what it attacks.

Reads one JSON object a line from standard input, an act and its seconds, and answers `started` and what came back.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

import orjson

from cli.up.child_process import dies_with_parent
from tests.influence.acts import ACTS, victims_key
from tests.influence.attack import Attack, perform
from tests.system.processes import ROOT


class Attacker:
    """Starts the process, and ends it."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._target = target
        self._is_acting = False

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.influence.attacker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=dies_with_parent(),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, name: str, seconds: float, *, model: str | None = None) -> None:
        """Returns once the act has begun. `model`: another one than the victim's."""
        assert self._process.stdin is not None
        if self._is_acting:  # in a test that failed before the end of its act
            self.end()
        target = self._target if model is None else self._target | {"model": model}
        order = {"act": name, "seconds": seconds, "target": target}
        self._process.stdin.write(orjson.dumps(order, option=orjson.OPT_APPEND_NEWLINE))
        self._process.stdin.flush()
        assert self._line() == "started"
        self._is_acting = True

    def end(self) -> dict[int, int]:
        """Wait for the end of the act: how often each status came."""
        counts = self._line()
        self._is_acting = False
        assert isinstance(counts, dict), counts
        return {int(status): count for status, count in counts.items()}

    def _line(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the attacker has ended"
        return orjson.loads(line)


def _say(message: object) -> None:
    sys.stdout.buffer.write(orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE))
    sys.stdout.buffer.flush()


def main() -> None:
    for number, line in enumerate(sys.stdin.buffer):
        order = orjson.loads(line)
        _say("started")
        name, ends_at = order["act"], time.monotonic() + order["seconds"]
        row = ACTS[name]
        attack = Attack(**order["target"], victims_key=victims_key(name), ends_at=ends_at, must=row.must, number=number)
        asyncio.run(perform(row.act, attack))
        _say({str(status): count for status, count in attack.statuses.items()})


if __name__ == "__main__":
    main()
