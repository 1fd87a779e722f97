"""What processes cost: CPU-seconds and peak memory of a process and all it started, read from /proc."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Positions in /proc/<pid>/stat after the command's name, which may itself hold spaces and brackets.
_PPID, _UTIME, _CSTIME = 1, 11, 14


@dataclass(frozen=True, slots=True)
class Tree:
    """A process and its descendants, under the name that a table shows."""

    name: str
    pid: int

    def pids(self) -> list[int]:
        """The living processes of the tree, parents first."""
        children: dict[int, list[int]] = {}
        for pid in _all_pids():
            with suppress(OSError):
                children.setdefault(_stat_fields(pid)[_PPID], []).append(pid)
        found = [self.pid] if Path(f"/proc/{self.pid}").exists() else []
        for pid in found:
            found += children.get(pid, ())
        return found

    def cpu_s(self) -> float:
        """User plus system CPU-seconds so far, children that have ended and were waited for included.

        Only differences mean anything, and only while no child is lost to another parent.
        """
        ticks = 0
        for pid in self.pids():
            with suppress(OSError):
                fields = _stat_fields(pid)
                ticks += sum(fields[_UTIME : _CSTIME + 1])
        return ticks / _TICKS_PER_S

    def rss_mb(self) -> float:
        """The resident size of all living processes of the tree together, in MB."""
        pages = 0
        for pid in self.pids():
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def peak_rss_mb(self) -> dict[str, float]:
        """The largest resident size of each living process since `reset_peak_rss`, in MB, parents first."""
        peaks = {}
        for number, pid in enumerate(self.pids()):
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        name = self.name if number == 0 else f"{self.name} child {number}"
                        peaks[name] = round(int(line.split()[1]) / 1024, 1)
        return peaks

    def reset_peak_rss(self) -> None:
        """Forget the peaks so far. Processes of another user, which refuse, keep theirs."""
        for pid in self.pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")


class CpuMeter:
    """CPU-seconds of several trees between two moments."""

    def __init__(self, trees: Iterable[Tree]) -> None:
        self.trees = list(trees)
        self._before = {tree.name: tree.cpu_s() for tree in self.trees}

    def spent_s(self) -> dict[str, float]:
        """CPU-seconds of each tree since the meter was made."""
        return {tree.name: round(tree.cpu_s() - self._before[tree.name], 3) for tree in self.trees}


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the lowest and the highest of the repetitions."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        if self.runs == 1:
            return significant(self.median)
        return f"{significant(self.median)} ({significant(self.low)}–{significant(self.high)})"


def significant(value: float) -> str:
    """Three figures, whole numbers from 1,000 upwards."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _stat_fields(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return [0, *(int(field) for field in fields[1:15])]


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
