"""Composition: what the verbs on files need, made of the parts of a process."""

from __future__ import annotations

from engine.files.file_store import FileStore
from engine.runtime import Runtime


def files_of(runtime: Runtime) -> FileStore:
    """The files of a process."""
    return FileStore(runtime.database, runtime.settings, runtime.objects)
