"""Which worker process holds which shards of a job, and what becomes of those when it is lost."""

from __future__ import annotations

import os
import signal

from tests.system.oracle import corpus
from tests.system.stack import Stack
from tests.waiting import wait_until

INPUTS = 4_000
Held = dict[str, tuple[int, int]]  # by shard: the process, and the fence of its claim


def started(stack: Stack, tag: str, count: int = INPUTS) -> tuple[str, list[str]]:
    """A job that is well under way."""
    texts = corpus(tag, count)
    job_id = stack.submit(texts)
    stack.await_progress(job_id, count // 8)
    return job_id, texts


def held_by(stack: Stack, job_id: str) -> Held:
    """The shards of the job that are running: which process has them, and by which fence."""
    rows = stack.query(f"SELECT id, worker, fence FROM shards WHERE job_id = '{job_id}' AND state = 'running'")
    return {shard: (int(worker.rpartition(":")[2]), fence) for shard, worker, fence in rows}


def taken_over(stack: Stack, lost: Held) -> bool:
    """True when every one of these shards has been claimed again, or is no longer there to be claimed."""
    names = ", ".join(f"'{shard}'" for shard in lost)
    rows = stack.query(f"SELECT id, fence, state FROM shards WHERE id IN ({names})")
    return all(fence > lost[shard][1] or state == "done" for shard, fence, state in rows)


def frozen_worker(stack: Stack, job_id: str) -> tuple[int, Held]:
    """A worker child, stopped in the middle of a shard, and what it holds."""

    def freeze() -> tuple[int, Held] | None:
        for victim, _ in held_by(stack, job_id).values():
            os.kill(victim, signal.SIGSTOP)
            lost = {shard: (pid, fence) for shard, (pid, fence) in held_by(stack, job_id).items() if pid == victim}
            if lost and stack.can_write():
                return victim, lost
            # It had just come to the end of that shard; or it holds the write lock of SQLite, which only its end frees.
            os.kill(victim, signal.SIGCONT)
        return None

    found = wait_until(freeze, 10, what="a worker in the middle of a shard")
    assert found is not None
    return found
