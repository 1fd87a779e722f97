"""`python -m bench.trips`: the way of a text through the code, counted in this process; time is not measured.

A profile hook sees each call into our packages while one marked text is embedded, stored, run, polled and read. Counted
are the distinct files entered, the calls, the changes of file from one call to the next, and the files that are given
the marked text (for a poll and for results: the job's id) in an argument. SQL statements and the marks of the source
text are counted too. Each trip is made several times after a warm-up; the median trip by files is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import orjson

from bench.call_trace import CallTrace, Trip
from bench.machine import describe_machine
from bench.report import RESULTS
from bench.statement_count import count_statements
from bench.static_marks import static_marks
from engine.queue.broker import Notifier
from engine.storage.database import migrate
from tests.gateway import CONFIG, Gateway, close_gateway, open_gateway
from tests.running import run_next_shard, run_shard

ROOT = Path(__file__).resolve().parents[1]
MARK = "m4rk3dt3xt"
WARM_UPS = 3
REPEATS = 5
JOB_INPUTS = 10
# The slot waits for a reply; what the first seconds of a run do is not counted.
SILENT = "silent"
SETTLE_S = 3.0
WINDOW_S = 10.0
SILENT_RULE = f'script = [\n    {{ when = {{ contains = "{SILENT}" }}, do = {{ latency_ms = 60000 }} }},'

Result = TypeVar("Result")


class AcceptingNotifier(Notifier):
    """A broker that accepts each message, and delivers none."""

    async def notify(self, messages: int) -> bool:
        return True


async def measure() -> dict[str, Any]:
    """Open a gateway on a fresh database, and count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await asyncio.to_thread(migrate, f"sqlite+aiosqlite:///{folder / 'embedmill.db'}")
        trace = CallTrace(ROOT)
        trace.install()
        gateway = await open_gateway(folder, config=CONFIG.replace("script = [", SILENT_RULE, 1))
        gateway.runtime.notifier = AcceptingNotifier("")
        try:
            trips = await _trips(gateway, trace)
            trace.uninstall()
            return {"trips": trips, "job_of_10": await _job(gateway), "waiting_slot": await _waiting_slot(gateway)}
        finally:
            trace.uninstall()
            await close_gateway(gateway)


async def _trips(gateway: Gateway, trace: CallTrace) -> dict[str, Any]:
    made: dict[str, list[Trip]] = {}

    async def traced(name: str, mark: str, work: Awaitable[Result]) -> Result:
        with trace.record(mark) as recorded:
            result = await work
        made.setdefault(name, []).append(recorded)
        return result

    for number in range(WARM_UPS + REPEATS):
        text = f"{MARK} number {number}"
        sync = await traced("sync", MARK, gateway.embed(text))
        assert sync.status_code == 200, sync.text
        body = orjson.dumps({"text": text}) + b"\n"
        submitted = await traced("ndjson_to_stored_input", MARK, gateway.stream(body))
        assert submitted.status_code == 202, submitted.text
        job_id = submitted.json()["id"]
        (shard_id,) = await gateway.shards(job_id)
        ran = await traced("stored_input_to_stored_vector", MARK, run_shard(gateway.runtime, shard_id, "bench"))
        assert ran
        polled = await traced("poll", job_id, gateway.job(job_id))
        assert polled["status"] == "completed", polled
        await traced("results", job_id, gateway.results(job_id))
    return {name: _median(trips[WARM_UPS:]).figures() for name, trips in made.items()}


def _median(trips: list[Trip]) -> Trip:
    return sorted(trips, key=lambda trip: (len(trip.files), len(trip.calls)))[len(trips) // 2]


async def _job(gateway: Gateway) -> dict[str, Any]:
    """The median of several jobs by statements: not every claim moves the fair-share clock of all projects."""
    await asyncio.sleep(SETTLE_S)  # until the ledger has the buffered rows of the calls before
    jobs = [await _one_job(gateway) for _ in range(REPEATS)]
    return sorted(jobs, key=lambda job: int(job["statements"]))[REPEATS // 2]


async def _one_job(gateway: Gateway) -> dict[str, Any]:
    """Submit a job as a JSON body and handle its message, until the job has finished; it is not polled."""
    inputs = [f"input {number}" for number in range(JOB_INPUTS)]
    with count_statements(gateway.runtime.database) as submitting:
        job = await gateway.submit(inputs)
    with count_statements(gateway.runtime.database) as running:
        await run_next_shard(gateway.runtime, "bench")
    assert (await gateway.job(job["id"]))["status"] == "completed"
    submit, run = submitting.figures(), running.figures()
    total = {name: submit[name] + run[name] for name in ("statements", "write_transactions")}
    return total | {"submit": submit, "run": run}


async def _waiting_slot(gateway: Gateway) -> dict[str, Any]:
    """Statements while the only call of a shard has no reply yet."""
    job = await gateway.submit([f"{SILENT} input"])
    (shard_id,) = await gateway.shards(job["id"])
    running = asyncio.create_task(run_shard(gateway.runtime, shard_id, "bench"))
    await asyncio.sleep(SETTLE_S)
    with count_statements(gateway.runtime.database) as counted:
        await asyncio.sleep(WINDOW_S)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    figures = counted.figures()
    distinct = sorted(set(figures.pop("statements_in_order")))
    return {"statements_per_s": len(counted.texts) / WINDOW_S, "window_s": WINDOW_S, "distinct_statements": distinct}


def _show(figures: dict[str, Any]) -> None:
    print(f"{'trip':32}{'files':>7}{'calls':>7}{'changes':>9}{'carrying files':>16}{'carrying changes':>18}")
    for name, trip in figures["trips"].items():
        counts = (trip["files"], trip["calls"], trip["file_changes"])
        carrying = (trip["carrying_files"], trip["carrying_file_changes"])
        print(f"{name:32}{counts[0]:7}{counts[1]:7}{counts[2]:9}{carrying[0]:16}{carrying[1]:18}")
    job, slot = figures["job_of_10"], figures["waiting_slot"]
    print(f"job of 10 inputs: {job['statements']} statements, {job['write_transactions']} write transactions")
    print(f"a slot that waits: {slot['statements_per_s']} statements a second")
    for name, value in figures["static"].items():
        print(f"{name}: {len(value)}: {value}" if isinstance(value, list) else f"{name}: {value}")


def main() -> int:
    """Measure, print, and keep the figures; exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.trips", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "trips.json")
    options = parser.parse_args()
    machine = describe_machine()
    figures = asyncio.run(measure()) | {"static": static_marks(ROOT)}
    _show(figures)
    options.out.write_bytes(orjson.dumps({"machine": machine} | figures, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
