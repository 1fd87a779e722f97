"""`python -m bench.costs`: messages, rows, bytes and statements of a bulk job, counted, and told per million inputs.

Everything runs in this process, on the product's own verbs, so that each statement is seen; time is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sqlite3
import sys
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from sqlalchemy import event

from bench.machine import describe_machine
from bench.report import RESULTS
from bench.texts import text_of
from engine.access.keys import Caller
from engine.config.settings import Settings
from engine.corpus.lines import ParsedRecords
from engine.jobs.composition import intake_parts_of
from engine.jobs.execution.worker import Worker
from engine.jobs.ingest import job_intake
from engine.queue.broker import Notifier
from engine.runtime import Runtime
from engine.storage.database import migrate
from models.embedding import Options

CONFIGURATION = """
[providers.fake]
kind = "fake"
[models.m]
dimensions = 1536
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "fake", model = "bench" }]
"""
TABLES = ("jobs", "shards", "shard_inputs", "vectors", "input_errors", "usage", "fair_shares")


class CountingNotifier(Notifier):
    """A queue that counts what is published."""

    def __init__(self) -> None:
        super().__init__("")
        self.published = 0
        self._waiting = 0

    async def notify(self, messages: int) -> bool:
        self.published += max(0, messages - self._waiting)
        self._waiting = max(self._waiting, messages)
        return True

    def receive(self) -> bool:
        """Take a message from the queue. False: there is none."""
        self._waiting -= 1
        return self._waiting >= 0


def ask(database_url: str, query: str) -> Any:
    """One value from a database, past the product."""
    if database_url.startswith("sqlite"):
        with closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), timeout=30)) as connection:
            return connection.execute(query).fetchone()[0]

    async def run() -> Any:
        connection = await asyncpg.connect(database_url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(run())


async def count(folder: Path, inputs: int, jobs: int) -> dict[str, Any]:
    """Run `jobs` jobs of `inputs` inputs each, and count."""
    config = folder / "embedmill.toml"
    config.write_text(CONFIGURATION)
    runtime = Runtime.open(Settings(data_dir=folder, config=str(config)))
    runtime.notifier = notifier = CountingNotifier()
    statements: Counter[str] = Counter()

    def note(_connection: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, many: bool) -> None:
        verb = statement.split(None, 1)[0].upper()
        table = re.search(r"(?:INTO|UPDATE|FROM) (\w+)", statement)
        statements["transactions" if verb == "BEGIN" else f"{verb} {table[1] if table else ''}"] += 1

    database = runtime.database
    for engine in (database._reads, database._writes):
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    for _ in range(jobs):
        wanted = job_intake.JobSpec(runtime.alias("m"), 1536, Options(), {}, "req_bench")
        async with job_intake.open_intake(
            intake_parts_of(runtime), Caller("key", "bench", frozenset()), wanted
        ) as intake:
            for start in range(0, inputs, 1000):
                lines = ParsedRecords()
                for number in range(start, min(start + 1000, inputs)):
                    lines.add(text_of(number), None)
                await intake.add(lines)
            await intake.finish(b"bench")
    while notifier.receive():
        await Worker(runtime, "bench").run_next()
    await runtime.close()
    url = f"sqlite:///{folder / 'embedmill.db'}"
    done = ask(url, "select sum(completed) from jobs")
    if done != inputs * jobs:
        raise SystemExit(f"{done} inputs of {inputs * jobs} were done")
    return {
        "jobs": jobs,
        "inputs_each": inputs,
        "messages": notifier.published,
        "statements": sum(statements.values()),
        "statements_by_kind": dict(statements.most_common(25)),
        "rows": {table: ask(url, f"select count(*) from {table}") for table in TABLES},
        "bytes": {
            "vectors": ask(url, "select sum(length(data)) from vectors"),
            "inputs": ask(url, "select sum(length(inputs)) from shard_inputs"),
            "database": (folder / "embedmill.db").stat().st_size,
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.add_argument("--n", type=int, default=100_000)
    given = parser.parse_args()
    found = []
    for inputs, jobs in ((given.n, 1), (10, 200)):
        with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
            migrate(f"sqlite+aiosqlite:///{folder}/embedmill.db")
            found.append(asyncio.run(count(Path(folder), inputs, jobs)))
    print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    kept = RESULTS / "costs.json"
    kept.write_bytes(orjson.dumps({"machine": describe_machine(), "runs": found}, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
