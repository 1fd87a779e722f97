"""Composition: what the verbs on batches need, made of the parts of a process."""

from __future__ import annotations

from engine.batches.submit import SubmitParts
from engine.files.composition import files_of
from engine.runtime import Runtime
from engine.webhooks.targets import TargetPolicy


def submit_parts_of(runtime: Runtime) -> SubmitParts:
    """What the submissions of a process share."""
    return SubmitParts(
        runtime.store,
        files_of(runtime),
        runtime.work,
        runtime.bodies,
        runtime.upload_leases,
        TargetPolicy(runtime.settings.webhook_allowed_networks),
    )
