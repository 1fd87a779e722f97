"""Composition: what the verbs on jobs need, made of the parts of a process."""

from __future__ import annotations

from engine.jobs.scheduling.dispatch import Dispatcher
from engine.runtime import Runtime


def dispatcher_of(runtime: Runtime) -> Dispatcher:
    """The dispatcher of a process."""
    return Dispatcher(runtime.store, runtime.notifier, runtime.settling)
