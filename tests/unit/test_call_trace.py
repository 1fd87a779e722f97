"""The trace of calls: what it counts as a call, and as carrying a value."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from bench.call_trace import CallTrace, Trip

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
import asyncio

async def waits(value):
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return helper(len(value))

def helper(size, *, values=()):
    return size
"""


@pytest.fixture
def code(tmp_path: Path) -> dict[str, object]:
    """Functions of a file `engine/room.py` below a root of its own."""
    functions: dict[str, object] = {}
    exec(compile(SOURCE, str(tmp_path / "engine" / "room.py"), "exec"), functions)
    return functions


def trace_of(root: Path, mark: str, work: str, code: dict[str, object], value: object) -> Trip:
    trace = CallTrace(root)
    trace.install()
    try:
        with trace.record(mark) as trip:
            result = code[work](value)  # type: ignore[operator]  # a function of the source above
            if asyncio.iscoroutine(result):
                asyncio.run(result)
    finally:
        trace.uninstall()
    return trip


def test_a_coroutine_that_continues_is_one_call(tmp_path: Path, code: dict[str, object]) -> None:
    trip = trace_of(tmp_path, "m4rk", "waits", code, "a m4rk")
    assert trip.calls == ["engine/room.py"] * 2
    assert trip.carrying_calls == ["engine/room.py"]


@pytest.mark.parametrize("value", ["m4rk", b"a m4rk", ["x", {"a": ("m4rk",)}], memoryview(b"m4rk")])
def test_the_mark_is_found_in_containers(tmp_path: Path, code: dict[str, object], value: object) -> None:
    assert trace_of(tmp_path, "m4rk", "helper", code, value).carrying_calls


def test_files_outside_our_packages_are_not_counted(code: dict[str, object]) -> None:
    assert not trace_of(ROOT, "m4rk", "helper", code, "m4rk").calls


def test_changes_of_file_are_counted_between_calls() -> None:
    figures = Trip(calls=["a", "a", "b", "a"], carrying_calls=["a", "b"]).figures()
    assert (figures["files"], figures["calls"], figures["file_changes"]) == (2, 4, 2)
    assert (figures["carrying_files"], figures["carrying_file_changes"]) == (2, 1)


def test_a_thread_that_starts_later_is_traced(tmp_path: Path, code: dict[str, object]) -> None:
    trace = CallTrace(tmp_path)
    trace.install()
    try:
        with trace.record("m4rk") as trip:
            thread = threading.Thread(target=code["helper"], args=("m4rk",))  # type: ignore[arg-type]  # see above
            thread.start()
            thread.join()
    finally:
        trace.uninstall()
    assert trip.carrying_calls == ["engine/room.py"]
