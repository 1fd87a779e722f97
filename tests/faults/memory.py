"""How resident memory of the API and of each worker child grows with the inputs of a job, while it runs."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from tests.system.stack import NOTHING_YET, Stack
from tests.waiting import wait_until

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_S = 0.1
LEAST_SAMPLES = 20
MB_PER_BYTE = 1 / 2**20


class Memory:
    """Samples of one job: inputs done, and bytes resident, for each process."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._samples: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def watch(self, job_id: str, timeout_s: float) -> None:
        """Sample until the job has ended. Raises AssertionError when that takes too long."""

        def sample() -> object:
            job = self._stack.polled(job_id) or NOTHING_YET
            for pid in [self._stack.processes.pid("api"), *self._stack.processes.children("worker")]:
                self.add(pid, job["counts"]["completed"], resident_bytes(pid))
            return job["finished_at"]

        wait_until(sample, timeout_s, every_s=SAMPLE_S, what=f"the end of {job_id}")

    def add(self, pid: int, done: int, resident: int) -> None:
        self._samples[pid].append((done, resident))

    def slopes_mb(self, *, after: int) -> dict[int, float]:
        """MB for each 10,000 inputs, by process, once `after` inputs are done.

        The median slope of all pairs of samples (Theil and Sen): a buffer that an allocator keeps, or gives back, is a
        step, which bends a least-squares line and not this one; what grows with every input shows in every pair.
        """
        return {pid: _median_slope([each for each in samples if each[0] >= after]) for pid, samples in self.whole()}

    def whole(self) -> list[tuple[int, list[tuple[int, int]]]]:
        """The processes that were there all the time."""
        most = max(map(len, self._samples.values()))
        return [(pid, samples) for pid, samples in self._samples.items() if len(samples) == most]


def _median_slope(samples: list[tuple[int, int]]) -> float:
    assert len(samples) >= LEAST_SAMPLES, f"{len(samples)} samples say nothing"
    done, resident = np.array(samples, dtype=float).T
    first, second = np.triu_indices(len(samples), k=1)
    apart = done[second] - done[first]
    moved = apart > 0
    slopes = (resident[second] - resident[first])[moved] / apart[moved]
    return float(np.median(slopes)) * 10_000 * MB_PER_BYTE


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
