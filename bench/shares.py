"""How evenly projects share one quota: `python -m bench.shares`, real processes against a fake that counts a minute.

Three projects have one large job each, the same demand, at the same time. Every second the tokens of each job are read
from its status. For each span of 60 s: how far the project with the least, and with the most, is from an equal share. A
call of 128 texts is a fiftieth of a project's share of a minute: no scheduler shares more finely than by calls.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from bench.bulk import ENDED, JOBS, NDJSON
from bench.client import BenchError, Client
from bench.machine import describe_machine
from bench.report import tell
from bench.stack import CONFIGURATION, MODEL, Stack
from bench.texts import text_of

PROJECTS = 3
TOKENS_PER_MINUTE = 600_000
WORKER_PROCESSES = 2
UPSTREAM_S = 0.2
SETTLE_S = 15.0
SECONDS = 140.0
SPAN_S = 60
TEXT_NUMBERS = 1  # of 130 bytes: some 31 tokens
TOKENS_PER_TEXT = 25  # at the least
MARK = 0.10


def measure(postgres_url: str | None, seconds: float) -> dict[str, Any]:
    """Run it once."""
    quota = f"tokens_per_minute = {TOKENS_PER_MINUTE}"
    configuration = CONFIGURATION.replace('base_url = "{url}"', f'base_url = "{{url}}"\n{quota}')
    with Stack(postgres_url, configuration=configuration, worker_processes=WORKER_PROCESSES) as stack:
        limits = {"tokens_per_minute": TOKENS_PER_MINUTE}
        stack.fake.json("PUT", "/__script", [{"do": {"rate_limit": limits, "latency_ms": UPSTREAM_S * 1000}}])
        projects = [stack.client_of(f"project-{number}") for number in range(PROJECTS)]
        count = int((SETTLE_S + seconds + 60) / 60 * TOKENS_PER_MINUTE / TOKENS_PER_TEXT)  # each could use it all
        jobs = [_submit(project, number, count) for number, project in enumerate(projects)]
        time.sleep(SETTLE_S)
        samples: list[tuple[float, list[int]]] = []
        began = time.monotonic()
        while (now := time.monotonic()) - began <= seconds:
            read = [project.json("GET", f"{JOBS}/{job}") for project, job in zip(projects, jobs, strict=True)]
            if any(job["status"] in ENDED for job in read):
                raise BenchError("a job was too small")
            samples.append((now - began, [job["usage"]["prompt_tokens"] for job in read]))
            time.sleep(max(0.0, now + 1.0 - time.monotonic()))
    spans = list(_spans(samples))
    if not spans:
        raise BenchError(f"nothing lasted {SPAN_S} s")
    total = [last - first for first, last in zip(samples[0][1], samples[-1][1], strict=True)]
    worst = max(spans, key=lambda span: span["off"])
    return {
        "database": stack.database_name,
        "seconds": samples[-1][0],
        "tokens": total,
        "token_quota_used": sum(total) / (TOKENS_PER_MINUTE * samples[-1][0] / 60),
        "spans": len(spans),
        "worst_span": worst,
        "whole_off": _off(total),
    }


def _spans(samples: list[tuple[float, list[int]]]) -> Any:
    for number, (at, tokens) in enumerate(samples):
        later = next((sample for sample in samples[number:] if sample[0] - at >= SPAN_S), None)
        if later is not None:
            gained = [last - first for first, last in zip(tokens, later[1], strict=True)]
            yield {"from_s": round(at, 1), "tokens": gained, "off": _off(gained)}


def _off(tokens: list[int]) -> float:
    """By how much of an equal share the one that is furthest from it differs."""
    equal = sum(tokens) / len(tokens)
    return max(abs(each - equal) for each in tokens) / max(equal, 1.0)


def _submit(project: Client, number: int, count: int) -> str:
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        with corpus.open("wb") as file:
            for line in range(count):
                first = (number * count + line) * TEXT_NUMBERS
                text = " ".join(text_of(first + i) for i in range(TEXT_NUMBERS))
                file.write(orjson.dumps(text, option=orjson.OPT_APPEND_NEWLINE))
        job: dict[str, Any] = project.upload(f"{JOBS}?model={MODEL.replace('/', '%2F')}", corpus, NDJSON)
    return str(job["id"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.shares", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--label", help="keep the figures in bench/results under this name")
    given = parser.parse_args()
    machine = describe_machine()
    figures: list[dict[str, Any]] = []
    for url in (None, os.environ.get("EMBEDMILL_TEST_POSTGRES_URL")):
        if url is not None or not figures:
            try:
                figures.append(measure(url, given.seconds))
            except BenchError as error:
                print(f"no figures: {error}", file=sys.stderr)
                return 1
    marks = {f"any minute within 10 %, {run['database']}": run["worst_span"]["off"] <= MARK for run in figures}
    results = {"machine": machine, "runs": figures, "marks": marks}
    tell(results, given.label)
    return 0 if all(marks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
