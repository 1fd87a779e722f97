"""The bill of a fake upstream, read as it grows: a long run has many jobs, and each is judged by its own calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson


class BillLog:
    """The lines of an append-only log, each parsed once, and by the hashes of their inputs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_bytes = 0
        self._lines: list[dict[str, Any]] = []
        self._by_hash: dict[str, set[int]] = defaultdict(set)

    def lines(self) -> list[dict[str, Any]]:
        """All calls, in order."""
        if self._path.exists():
            with self._path.open("rb") as log:
                log.seek(self._read_bytes)
                grown = log.read()
            whole = grown[: grown.rfind(b"\n") + 1]  # a line that is being written is read next time
            self._read_bytes += len(whole)
            for line in map(orjson.loads, whole.splitlines()):
                for name in line.get("input_hashes", ()):
                    self._by_hash[name].add(len(self._lines))
                self._lines.append(line)
        return list(self._lines)

    def with_inputs(self, hashes: Iterable[str]) -> list[dict[str, Any]]:
        """The calls with at least one of these inputs, in order."""
        lines = self.lines()
        numbers: set[int] = set()
        for name in hashes:
            numbers |= self._by_hash.get(name, set())
        return [lines[number] for number in sorted(numbers)]
