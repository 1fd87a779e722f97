"""Composition: what the verbs on jobs need, made of the parts of a process."""

from __future__ import annotations

from engine.files.composition import files_of
from engine.jobs.ingest.dry_run import DryRun
from engine.jobs.ingest.job_intake import IntakeParts, JobSpec
from engine.jobs.ingest.token_counting import method_for
from engine.jobs.maintenance.sweep import Sweep
from engine.jobs.scheduling.dispatch import Dispatcher
from engine.runtime import Runtime


def dispatcher_of(runtime: Runtime) -> Dispatcher:
    """The dispatcher of a process."""
    return Dispatcher(runtime.store, runtime.notifier, runtime.settling)


def sweep_of(runtime: Runtime) -> Sweep:
    """The sweep of a process."""
    return Sweep(
        runtime.store,
        runtime.database_clock,
        runtime.spool,
        runtime.journal,
        dispatcher_of(runtime),
        files_of(runtime),
    )


def intake_parts_of(runtime: Runtime) -> IntakeParts:
    """What the uploads of a process share."""
    return IntakeParts(
        runtime.store, dispatcher_of(runtime), runtime.work, memory=runtime.bodies, leases=runtime.upload_leases
    )


async def dry_run_of(runtime: Runtime, spec: JobSpec, project: str) -> DryRun:
    """A dry run of a job of the project. Raises StorageUnavailable."""
    method = await method_for(runtime.database, runtime.upstream, runtime.router, spec.alias, project)
    return DryRun(runtime.settings, runtime.work, method, spec, project)
