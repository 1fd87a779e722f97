"""A PostgreSQL and a whole system for each file of faults, healed before each test, and the numbers of each run."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import pytest

from tests.system.cluster import PostgresCluster
from tests.system.oracle import (
    SWEPT_WITHIN_S,
    Findings,
    check_history,
    check_secrets,
    check_strangers,
    judge,
    watch_history,
)
from tests.system.stack import Stack

NoteFact = Callable[[str, object], None]

# Outages as long as the fault matrix has them, or so short that all of it is through in ten minutes.
LONG = os.environ.get("EMBEDMILL_TEST_LONG", "") not in ("", "0")


def lasting(short_s: float, long_s: float) -> float:
    return long_s if LONG else short_s


class FaultRun:
    """One run of one fault. Its numbers go into the table of docs/reliability.md."""

    def __init__(self, note: NoteFact, seed: int) -> None:
        self._note = note
        self._worst_s = 0.0
        self.seed = seed
        self.chance = random.Random(seed)
        self.total = Findings()
        note("seed", seed)

    def recovered(self, seconds: float, *, within_s: float) -> None:
        """I6: the worst recovery of the run, against its mark."""
        self._worst_s = max(self._worst_s, seconds)
        self._note("recovery_s", self._worst_s)
        assert seconds <= within_s, f"recovery took {seconds:.1f} s"

    def judge(
        self,
        stack: Stack,
        job_id: str,
        texts: Sequence[str],
        *,
        failed: Collection[int] = (),
        repeats: int | range = 0,
        retried: Collection[str] = (),
    ) -> Findings:
        """Every invariant of a job that has ended. `repeats`: how many inputs may have been embedded again."""
        findings = judge(stack, job_id, texts, failed=failed, patience_s=SWEPT_WITHIN_S)
        self.total += findings
        self._note("verdict", asdict(self.total))
        print(f"seed {self.seed}: {findings}")
        assert findings.is_clean, findings
        allowed = repeats if isinstance(repeats, range) else range(repeats, repeats + 1)
        assert findings.repeated in allowed, findings
        check_history(stack, retried=retried)
        check_secrets(stack, job_id, texts)
        check_strangers(stack, job_id)
        return findings


@pytest.fixture
def fault_run(request: pytest.FixtureRequest, record_property: NoteFact) -> FaultRun:
    """Its seed is the test's own, or EMBEDMILL_TEST_SEED; it is printed, and a run can be repeated from it."""
    given = os.environ.get("EMBEDMILL_TEST_SEED")
    return FaultRun(record_property, int(given) if given else zlib.crc32(request.node.name.encode()) % 100_000)


@pytest.fixture(scope="session")
def cluster() -> Iterator[PostgresCluster]:
    with PostgresCluster() as cluster:
        yield cluster


StackFactory = Callable[..., Stack]


@pytest.fixture(scope="module")
def make_stack(cluster: PostgresCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackFactory]:
    """Stacks on databases of their own, with a witness of every job's moves; they live as long as the file's tests."""
    with ExitStack() as opened:

        def make(**options: Any) -> Stack:
            options.setdefault("database_url", cluster.create())
            stack = opened.enter_context(Stack(tmp_path_factory.mktemp("stack"), **options))
            watch_history(stack)
            return stack

        yield make


@pytest.fixture(scope="module")
def module_stack(make_stack: StackFactory) -> Stack:
    """Override it for a stack of another kind."""
    return make_stack(proxied=("database", "broker", "upstream"), call_timeout_s=3.0)


@pytest.fixture
def stack(module_stack: Stack, cluster: PostgresCluster) -> Iterator[Stack]:
    """The file's stack, with nothing wrong with it before each test and after the last."""
    yield module_stack
    for proxy in module_stack.proxies.values():
        proxy.heal()
    if not cluster.answers():
        cluster.start()
    module_stack.latency(0)
    module_stack.revive()
