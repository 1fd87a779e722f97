"""Names are words of the field: metaphors that were taken out do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.architecture.test_laws import PACKAGES, name, sources

# What each was, and what it is called now.
METAPHORS = {
    "accused": "suspect",
    "acquit": "record_flakes",
    "canaries": "drift monitor",
    "court": "prober",
    "doorbell": "notifier",
    "hope": "recoverability",
    "lessons": "learned limits",
    "witness": "call observer",
}
# Words that are gone from the packages of the bulk jobs.
JOB_PACKAGES = ("engine/jobs", "models", "workers")
JOB_WORDS = {
    "asked": "a noun: requested_at, position_of",
    "bell": "notifier",
    "canary": "drift check",
    "deadly": "crashing",
    "doomed": "deleted",
    "given": "a noun: what the value is",
    "gone": "SHARD_CLOSED, client_disconnected",
    "guest": "preemptor",
    "guests": "preemptors",
    "guilty": "crashing input",
    "halve": "split_shard",
    "held": "shard",
    "kept": "durable, or a noun",
    "mine": "owned",
    "newcomer": "initial_virtual_time",
    "place": "position",
    "places": "positions",
    "purse": "reservation",
    "rear": "min_virtual_time",
    "rings": "notifications",
    "rung": "announced",
    "settle": "finalize",
    "some": "chunk, limit",
    "told": "reported, or a noun",
    "trial": "solo_baseline",
    "turn": "next_shard",
    "turns": "selection",
    "twin": "duplicate",
    "twins": "duplicates",
    "unrung": "overdue",
    "visit": "slice",
    "wanted": "spec, needed, indexes",
}

# The same for the packages whose words are settled: in others some of these still have another meaning.
CORE_METAPHORS = {
    "acquit": "record_flakes",
    "asked": "requested",
    "desk": "coordinator",
    "door": "semaphore",
    "felt": "observe",
    "gates": "cooldowns, circuit",
    "guilty": "offending",
    "hasty": "is_quick",
    "heard": "successes before",
    "heed": "respect",
    "landed": "on_outcome, outcome",
    "lesson": "signal, learned limits",
    "mine": "what it is",
    "most": "maximum",
    "pulse": "latency",
    "purse": "reservation",
    "rung": "announced",
    "said": "reported",
    "shut": "tripped, invalidate",
    "strikes": "consecutive 429s",
    "told": "reported",
    "trial": "attempts",
    "twins": "duplicates",
    "wanted": "requested",
}
CORE = ("providers", "engine")
PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def names_in(path: Path) -> set[str]:
    """Every identifier that the file defines or uses."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Name(id=text) | ast.arg(arg=text) | ast.Attribute(attr=text) | ast.keyword(arg=str(text)):
                found.add(text)
            case ast.FunctionDef(name=text) | ast.AsyncFunctionDef(name=text) | ast.ClassDef(name=text):
                found.add(text)
            case _:
                pass
    return found


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=name)
def test_no_name_is_a_metaphor(path: Path) -> None:
    words = {part.lower(): each for each in names_in(path) for part in PARTS.findall(each)}
    found = {words[word]: f"say {better}" for word, better in METAPHORS.items() if word in words}
    assert not found, found


@pytest.mark.parametrize("path", sources(*JOB_PACKAGES), ids=name)
def test_names_of_the_jobs_are_nouns_of_the_field(path: Path) -> None:
    words = {part.lower(): each for each in names_in(path) for part in PARTS.findall(each)}
    found = {words[word]: f"say {better}" for word, better in JOB_WORDS.items() if word in words}
    assert not found, found


def core_sources() -> list[Path]:
    """Files of the packages whose words are settled: all of engine but the jobs, and the providers."""
    return [path for path in sources(*CORE) if "jobs" not in path.parts]


@pytest.mark.parametrize("path", core_sources(), ids=name)
def test_no_name_of_the_core_is_a_metaphor(path: Path) -> None:
    words = {part.lower(): each for each in names_in(path) for part in PARTS.findall(each)}
    if path.name == "database_gauges.py":
        words.pop("rung", None)  # a state of shards, whose name the jobs decide
    found = {words[word]: f"say {better}" for word, better in CORE_METAPHORS.items() if word in words}
    assert not found, found


def test_the_law_finds_them(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text("class Doorbell: ...\ndef f(witness, *, acquit_all=1): return g(hope=1).canaries\n")
    words = {part.lower() for each in names_in(path) for part in PARTS.findall(each)}
    assert {"doorbell", "witness", "acquit", "hope", "canaries"} <= words
