"""What the submissions of batches need, made of the parts of a process."""

from __future__ import annotations

from dataclasses import dataclass

from engine.files.composition import files_of
from engine.files.file_store import FileStore
from engine.job_store import JobStore
from engine.process.memory_budget import ByteBudget
from engine.process.work_threads import WorkThreads
from engine.runtime import Runtime
from engine.webhooks.targets import TargetPolicy


@dataclass(frozen=True, slots=True)
class SubmitParts:
    """What the submissions of a process share. `memory`: of request bodies."""

    store: JobStore
    files: FileStore
    work: WorkThreads
    memory: ByteBudget
    targets: TargetPolicy


def submit_parts_of(runtime: Runtime, targets: TargetPolicy) -> SubmitParts:
    """What the submissions of a process share. `targets`: the process's own, which bounds its look-ups of names."""
    return SubmitParts(
        runtime.store,
        files_of(runtime),
        runtime.work,
        runtime.bodies,
        targets,
    )
