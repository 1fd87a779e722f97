"""Which functions of our packages a piece of work enters, and which of them are given a marked value.

The hook of `sys.setprofile` sees each start of a function; a coroutine that continues after an await is not counted
again. Threads are traced too, if they were started after `CallTrace.install`.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import msgspec

PACKAGES = ("models", "providers", "engine", "api", "workers", "cli")
# How many containers and objects are opened in search of the marked value.
MAX_DEPTH = 3
MAX_ITEMS = 64


@dataclasses.dataclass(slots=True)
class Trip:
    """The way of one piece of work: the file of each call, in order of the calls' starts."""

    calls: list[str] = dataclasses.field(default_factory=list)
    carrying_calls: list[str] = dataclasses.field(default_factory=list)
    functions: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # that were called, by file

    @property
    def files(self) -> list[str]:
        """Distinct files that were entered, in order of their first call."""
        return list(dict.fromkeys(self.calls))

    def figures(self) -> dict[str, Any]:
        """The counts, and the lists of files."""
        carrying = list(dict.fromkeys(self.carrying_calls))
        return {
            "files": len(self.files),
            "calls": len(self.calls),
            "file_changes": _changes(self.calls),
            "carrying_files": len(carrying),
            "carrying_file_changes": _changes(self.carrying_calls),
            "functions_by_file_in_order": self.functions,
            "carrying_files_in_order": carrying,
        }


def _changes(files: list[str]) -> int:
    return sum(before != after for before, after in itertools.pairwise(files))


class CallTrace:
    """Records the calls into the packages below `root` while `record` is open."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[CodeType, str | None] = {}
        self._mark = ""
        self._trip: Trip | None = None

    def install(self) -> None:
        """Set the hook in this thread and in each thread that starts from now on."""
        threading.setprofile(self._hook)
        sys.setprofile(self._hook)

    def uninstall(self) -> None:
        """Remove the hook from this thread and from those to come."""
        sys.setprofile(None)
        threading.setprofile(None)

    @contextmanager
    def record(self, mark: str) -> Iterator[Trip]:
        """Record calls, and look for `mark` in their arguments."""
        self._mark, self._trip = mark, Trip()
        try:
            yield self._trip
        finally:
            self._trip = None

    def _hook(self, frame: FrameType, event: str, _argument: Any) -> None:
        if event != "call" or (trip := self._trip) is None:
            return
        code = frame.f_code
        name = self._names[code] if code in self._names else self._name(code)
        if name is None or not _is_start(code, frame.f_lasti):
            return
        trip.calls.append(name)
        functions = trip.functions.setdefault(name, [])
        if code.co_qualname not in functions:
            functions.append(code.co_qualname)
        if any(_holds(value, self._mark, MAX_DEPTH) for value in _arguments(frame)):
            trip.carrying_calls.append(name)

    def _name(self, code: CodeType) -> str | None:
        """The file of the function below the root; None for code that is not of our packages."""
        path = Path(code.co_filename)
        name = path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else ""
        self._names[code] = name if name.partition("/")[0] in PACKAGES else None
        return self._names[code]


def _is_start(code: CodeType, last_instruction: int) -> bool:
    """False where a generator or coroutine continues: the argument of RESUME says which of them it is."""
    return code.co_code[last_instruction + 1] & 3 == 0


def _arguments(frame: FrameType) -> list[Any]:
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return [values[name] for name in code.co_varnames[:count] if name in values]


def _holds(value: Any, mark: str, depth: int) -> bool:
    """True when the value is, or contains, a text or bytes with the mark."""
    if isinstance(value, str):
        return mark in value
    if isinstance(value, bytes | bytearray | memoryview):
        return mark.encode() in bytes(value)
    if depth == 0:
        return False
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, msgspec.Struct):
        parts = [getattr(value, name) for name in value.__struct_fields__]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    else:
        return False
    return any(_holds(part, mark, depth - 1) for part in parts[:MAX_ITEMS])
