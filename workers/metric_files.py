"""Metric files of ended processes in Prometheus's folder: added up into one file per kind, so that they cannot grow."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import mmap_dict

MmapedDict: Any = mmap_dict.MmapedDict  # it has no types

ENDED = "ended"
SUMMED = ("counter", "histogram", "summary")


def compact(folder: Path) -> int:
    """Add the counters of processes that have ended to one file a kind, and remove theirs; how many files went.

    Their gauges go too: what a process that has ended said last is not true any more.
    """
    removed = 0
    with _lock(folder):
        for path in sorted(folder.glob("*_*.db")):
            kind, _, rest = path.stem.partition("_")
            pid = rest.rpartition("_")[2]
            if not pid.isdigit() or Path("/proc", pid).exists():
                continue
            if kind in SUMMED:
                _add(path, folder / f"{kind}_{ENDED}.db")
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def _add(source: Path, target: Path) -> None:
    # A scrape reads the old sum or the new one, never a half-written file.
    fresh = target.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    totals: dict[str, float] = {}
    for path in (target, source):
        with contextlib.suppress(OSError):
            for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                totals[key] = totals.get(key, 0.0) + value
    values = MmapedDict(str(fresh))
    for key, value in totals.items():
        values.write_value(key, value, 0.0)
    values.close()
    fresh.replace(target)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
