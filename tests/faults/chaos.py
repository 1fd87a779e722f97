"""Chaos (row 54): jobs and sync calls, while a seeded schedule breaks one part after another; then every invariant.

    python -m tests.faults.chaos --seconds 60 --seed 7

The schedule is made from the seed before anything starts, and printed: the same seed breaks the same things in the same
order. Status 1 when anything was lost, doubled, misplaced or charged twice, or a mark was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import redis

from engine.jobs.execution.results_writer import RECORD_INPUTS
from tests.faults.sync_calls import SyncCalls
from tests.system.cluster import PostgresCluster
from tests.system.oracle import (
    SWEPT_WITHIN_S,
    Findings,
    check_history,
    check_secrets,
    check_strangers,
    corpus,
    judge,
    watch_history,
)
from tests.system.running_shards import held_by, taken_over
from tests.system.stack import LEASE_S, Stack
from tests.waiting import wait_until

JOB_INPUTS = 6_000
JOBS_AT_ONCE = 2
CALLS, BATCH = 8, 128
CHILDREN = 2  # of each worker
SETTINGS = {"BATCH_INPUTS": f"{BATCH}", "SHARD_CONCURRENCY": f"{CALLS}", "SHARD_INPUTS": "1024"}
# What one worker child may have under way when it dies.
REPEATS_PER_DEATH = CALLS * BATCH + RECORD_INPUTS
FAULT_EVERY_S = 2.5
KILL_EVERY_S = 10.0
CALL_TIMEOUT_S = 5.0
KILLS = ("kill_worker", "freeze_child")
OTHERS = ("kill_broker", "flush_broker", "restart_database", "terminate_worker", "terminate_api", "provider")
REFUSED_CALLS = 8  # at the most, each time that the provider misbehaves
PROVIDER = (
    {"when": {"probability": 0.3}, "do": {"status": 500}},
    {"when": {"probability": 0.3}, "do": {"status": 529}},
    {"do": {"status": 429, "retry_after_ms": 300}, "times": 20},
    {"when": {"every": 4}, "do": {"fault": "reset"}},
    {"when": {"every": 4}, "do": {"fault": "truncate", "billed": False}},
    {"when": {"every": 9}, "do": {"fault": "hang"}, "times": 2},
    # One process leaves the account alone for a while, the others go on.
    {"do": {"status": 401}, "times": 1},
    # The rest of the answer comes after the call's time is over.
    {"when": {"every": 4}, "do": {"slow_body_ms": CALL_TIMEOUT_S * 1_600, "billed": False}, "times": 4},
    *(
        # Answers that are refused are billed all the same; shuffled ones are put right and kept.
        {"when": {"every": 4}, "do": {"reply": shape}, "times": REFUSED_CALLS}
        for shape in ("short", "shuffle", "duplicate_index", "nan", "html", "cut_json", "wrong_width")
    ),
)
RECOVERY_MARK_S = 30.0
OVERHEAD_MARK = 0.05
MISBEHAVES_S = 1.0  # how long the provider does


@dataclass(frozen=True)
class Event:
    at_s: float
    fault: str
    choice: int  # which worker, API, signal or rule


def schedule(seconds: float, seed: int) -> list[Event]:
    """What breaks when: a kill every ten seconds, and something else every two and a half."""
    chance = random.Random(seed)
    times = [*_every(KILL_EVERY_S, seconds, chance, KILLS), *_every(FAULT_EVERY_S, seconds, chance, OTHERS)]
    return sorted(times, key=lambda event: event.at_s)


def _every(gap_s: float, seconds: float, chance: random.Random, faults: tuple[str, ...]) -> list[Event]:
    count = max(1, int(seconds / gap_s))
    return [
        Event((number + chance.random()) * gap_s, chance.choice(faults), chance.randrange(1_000))
        for number in range(count)
    ]


@dataclass
class Report:
    seed: int
    seconds: float
    events: list[str] = field(default_factory=list)
    kills: int = 0  # of processes that hold shards
    jobs: int = 0
    sync_statuses: dict[str, int] = field(default_factory=dict)
    verdict: Findings = field(default_factory=Findings)
    worst_recovery_s: float = 0.0
    breaches: list[str] = field(default_factory=list)


class Chaos:
    """One run against one stack."""

    def __init__(self, stack: Stack, cluster: PostgresCluster, report: Report) -> None:
        self._stack, self._cluster, self._report = stack, cluster, report
        self._stop = threading.Event()
        self._jobs: dict[str, list[str]] = {}
        self._uploads = 0
        self._calls = SyncCalls(stack, report.seed)

    def run(self) -> None:
        threads = [threading.Thread(target=each) for each in (self._feed, self._call)]
        wait_until(self._progress_of_first, 30, what="the first results")
        for thread in threads:
            thread.start()
        try:
            self._break_things()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._heal()
        for job_id in self._jobs:
            with suppress(AssertionError):  # the verdict says what it has lost
                self._stack.await_end(job_id, 120)
        self._judge()

    def _progress_of_first(self) -> bool:
        if not self._jobs:
            self._submit()
        return self._completed() > 0

    def _submit(self) -> None:
        # Texts of its own for each attempt: what had arrived of a refused upload may have been embedded.
        self._uploads += 1
        texts = corpus(f"chaos {self._report.seed} {self._uploads}", JOB_INPUTS)
        with suppress(httpx.TransportError, AssertionError):  # refused, or lost on the way: nothing was promised
            self._jobs[self._stack.submit(texts)] = texts

    def _feed(self) -> None:
        while not self._stop.wait(0.2):
            with suppress(Exception):
                open_ = self._stack.query("SELECT count(*) FROM jobs WHERE finished_at IS NULL")[0][0]
                if int(open_) < JOBS_AT_ONCE:
                    self._submit()

    def _call(self) -> None:
        self._calls.go_on_until(self._stop)

    def _break_things(self) -> None:
        began = time.monotonic()
        for event in schedule(self._report.seconds, self._report.seed):
            time.sleep(max(0.0, began + event.at_s - time.monotonic()))
            said = f"{time.monotonic() - began:6.1f} s  {event.fault} {event.choice}"
            act: Callable[[int], float] = getattr(self, f"_{event.fault}")
            took_s = act(event.choice)
            self._report.worst_recovery_s = max(self._report.worst_recovery_s, took_s)
            self._report.events.append(f"{said}: recovered in {took_s:.1f} s")
            print(self._report.events[-1], flush=True)

    # The faults. Each returns the seconds from its end to the recovery.

    def _kill_worker(self, choice: int) -> float:
        name = self._stack.workers[choice % len(self._stack.workers)]
        pids = set(self._stack.processes.children(name))
        lost = {shard: held for job in self._open_jobs() for shard, held in self._held(job).items() if held[0] in pids}
        self._stack.restart(name)
        self._report.kills += CHILDREN
        return self._until(lambda: not lost or taken_over(self._stack, lost))

    def _freeze_child(self, choice: int) -> float:
        """Past its lease; whatever it brings when it wakes is late."""
        name = self._stack.workers[choice % len(self._stack.workers)]
        children = wait_until(lambda: self._stack.processes.children(name), 60, what=f"children of {name}")
        victim = children[choice % len(children)]
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGSTOP)
            time.sleep(LEASE_S * 1.5)
            os.kill(victim, signal.SIGCONT)
        self._report.kills += 1
        return self._until_progress()

    def _kill_broker(self, choice: int) -> float:
        self._stack.restart("valkey")
        return self._until_progress()

    def _flush_broker(self, choice: int) -> float:
        wait_until(self._flushes, 10, what="a broker to flush")  # it may have been killed a moment ago
        return self._until_progress()

    def _flushes(self) -> bool:
        try:
            with redis.Redis.from_url(self._stack.broker_url) as client:
                client.flushall()
        except redis.ConnectionError:
            return False
        return True

    def _restart_database(self, choice: int) -> float:
        self._cluster.restart(signal.SIGQUIT if choice % 2 else signal.SIGINT)
        return self._until_progress()

    def _terminate_worker(self, choice: int) -> float:
        name = self._stack.workers[choice % len(self._stack.workers)]
        self._stack.processes.terminate(name)
        self._stack.processes.start(name)
        return self._until_progress()

    def _terminate_api(self, choice: int) -> float:
        name = [*self._stack.urls][choice % len(self._stack.urls)]
        with self._calls.ending(name):
            self._stack.processes.terminate(name)
            self._stack.processes.start(name)
        return self._until_progress()

    def _provider(self, choice: int) -> float:
        with self._calls.misbehaving():
            self._stack.script({"do": {"latency_ms": 100}}, PROVIDER[choice % len(PROVIDER)], seed=choice)
            time.sleep(MISBEHAVES_S)
            self._stack.latency(100)
        return self._until_progress()

    # What they have in common.

    def _open_jobs(self) -> list[str]:
        return [str(row[0]) for row in self._stack.query("SELECT id FROM jobs WHERE finished_at IS NULL")]

    def _held(self, job_id: str) -> dict[str, tuple[int, int]]:
        return held_by(self._stack, job_id)

    def _completed(self) -> int:
        return int(self._stack.query("SELECT coalesce(sum(completed), 0) FROM jobs")[0][0])

    def _until_progress(self) -> float:
        before: list[int] = []

        def grown() -> bool:
            if not before:
                before.append(self._completed())
            return self._completed() > before[0] or not self._open_jobs()

        return self._until(grown)

    def _until(self, recovered: Callable[[], bool]) -> float:
        began = time.monotonic()
        while time.monotonic() - began < RECOVERY_MARK_S:
            with suppress(OSError, Exception):
                if recovered():
                    return time.monotonic() - began
            time.sleep(0.05)
        self._report.breaches.append(f"no recovery within {RECOVERY_MARK_S:g} s")
        return time.monotonic() - began

    def _heal(self) -> None:
        if not self._cluster.answers():
            self._cluster.start()
        self._stack.latency(0)
        self._stack.revive()

    def _judge(self) -> None:
        report = self._report
        report.jobs = len(self._jobs)
        report.sync_statuses = dict(self._calls.statuses)
        report.breaches += self._calls.breaches
        for job_id, texts in self._jobs.items():
            report.verdict += judge(self._stack, job_id, texts, patience_s=SWEPT_WITHIN_S)
            self._expect(lambda job_id=job_id, texts=texts: check_secrets(self._stack, job_id, texts))  # type: ignore[misc]
        self._expect(lambda: check_history(self._stack))
        self._expect(lambda: check_strangers(self._stack, next(iter(self._jobs))))
        findings = report.verdict
        if not findings.is_clean:
            report.breaches.append(f"{findings}")
        misbehaved = sum(" provider " in event for event in report.events)
        if findings.repeated > report.kills * REPEATS_PER_DEATH + misbehaved * REFUSED_CALLS * BATCH:
            report.breaches.append(
                f"{findings.repeated} inputs embedded again: {report.kills} deaths, bad replies {misbehaved} times"
            )
        # The mark is for a rate at which a death is a small part of the work: 1,024 in flight of 20,000 a kill.
        if findings.inputs >= 20_000 * report.kills and findings.overhead > OVERHEAD_MARK:
            report.breaches.append(f"overhead {findings.overhead:.1%}")

    def _expect(self, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            self._report.breaches.append(str(error).splitlines()[0])


def run(seconds: float, seed: int) -> Report:
    report = Report(seed, seconds)
    with (
        tempfile.TemporaryDirectory(prefix="embedmill-chaos-") as name,
        PostgresCluster() as cluster,
        Stack(
            Path(name),
            database_url=cluster.create(),
            settings=SETTINGS,
            workers=("worker", "worker-2"),
            apis=2,
            call_timeout_s=CALL_TIMEOUT_S,
        ) as stack,
    ):
        watch_history(stack)
        stack.latency(100)
        Chaos(stack, cluster, report).run()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="append the run's numbers to this JSON list")
    given = parser.parse_args()
    print(f"chaos: seed {given.seed}, {given.seconds:g} s", flush=True)
    report = run(given.seconds, given.seed)
    findings = report.verdict
    print(f"jobs {report.jobs}, inputs {findings.inputs}, deaths of workers {report.kills}")
    print(f"sync calls: {report.sync_statuses}")
    print(f"lost {findings.lost}, duplicated {findings.duplicated}, misaligned {findings.misaligned}")
    print(f"duplicate ledger {findings.duplicate_ledger}, ledger wrong {findings.unbalanced}")
    print(f"upstream overhead {findings.overhead:.2%}")
    print(f"worst recovery {report.worst_recovery_s:.1f} s")
    for breach in report.breaches:
        print(f"BREACH: {breach}")
    if given.out:
        runs = json.loads(given.out.read_text()) if given.out.exists() else []
        run_ = {
            "row": 54,
            "test": "make chaos",
            "outcome": "failed" if report.breaches else "passed",
            "seed": report.seed,
        }
        run_ |= {"recovery_s": report.worst_recovery_s, "verdict": asdict(findings), "seconds": report.seconds}
        given.out.write_text(json.dumps([*runs, run_], indent=1) + "\n")
    print(f"replay: python -m tests.faults.chaos --seconds {given.seconds:g} --seed {given.seed}")
    sys.exit(1 if report.breaches else 0)


if __name__ == "__main__":
    main()
