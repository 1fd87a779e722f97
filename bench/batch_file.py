"""`python -m bench.batch_file`: an OpenAI batch from the upload of its file to the last byte of its output.

One input a line. The time and the CPU-seconds of each phase, peak resident sizes, and every line of the output checked:
its order, and the vector of one in fifty. `--dimensions 16` makes the lines narrow, for a million of them.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson

from bench.client import BenchError
from bench.machine import describe_machine
from bench.measure import CpuMeter
from bench.report import RESULTS
from bench.scale import Memory
from bench.stack import CONFIGURATION, MODEL, WIDTH, Stack
from bench.texts import text_of
from providers.fake import fake_vectors

BATCHES, FILES = "/v1/batches", "/v1/files"
USUAL = 100_000
POLL_S = 0.05
ENDED = ("completed", "failed", "expired", "cancelled")
VECTOR_STEP = 50
BOUNDARY = "batch-file-bench"
NARROWABLE = CONFIGURATION.replace("dimensions = 1536\n", 'dimensions = 1536\nallowed_dimensions = "1..1536"\n')


def measure(stack: Stack, count: int, width: int) -> dict[str, Any]:
    """All figures of one batch of `count` lines. Raises BenchError when anything is not as it should be."""
    figures: dict[str, Any] = {"database": stack.database, "lines": count, "dimensions": width}
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder, Memory(stack) as memory:
        form = Path(folder) / "form"
        input_bytes = _write_form(form, count, width)
        memory.phase = "upload"
        with _phase(stack, figures, "upload"):
            kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
            file = stack.api.upload(FILES, form, kind, expect=200)
        figures["upload_mb_per_s"] = input_bytes / 2**20 / figures["upload_s"]
        request = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
        batch = stack.api.json("POST", BATCHES, request)
        for name, statuses in (
            ("validation", ("validating",)),
            ("run", ("in_progress",)),
            ("output", ("finalizing",)),
        ):
            memory.phase = name
            with _phase(stack, figures, name):
                batch = _while_in(stack, batch["id"], statuses, memory)
        if batch["status"] != "completed" or batch["error_file_id"] is not None:
            raise BenchError(f"the batch ended as {orjson.dumps(batch).decode()[:2000]}")
        if batch["request_counts"] != {"total": count, "completed": count, "failed": 0}:
            raise BenchError(f"the batch counted {batch['request_counts']}")
        memory.phase = "download"
        with _phase(stack, figures, "download"):
            output_bytes = _check_output(stack, batch, count, width)
        billed = stack.fake.json("GET", "/__stats")["billed_inputs"]
        figures["billed_twice"] = billed - count
    for name in ("validation", "run", "output"):
        figures[f"{name}_lines_per_s"] = count / figures[f"{name}_s"]
        figures[f"{name}_worker_cpu_us_per_line"] = figures[f"{name}_cpu_s"]["worker"] / count * 1e6
    # The CPU of the worker alone: what it would write with a core to itself.
    figures["output_lines_per_s_and_core"] = 1e6 / figures["output_worker_cpu_us_per_line"]
    figures["output_mb"] = output_bytes / 2**20
    figures["peak_rss_mb"] = memory.peaks()
    figures["peak_rss_mb_by_phase"] = {
        phase: {
            name: round(max(sizes[name] for each, _, sizes in memory.rows if each == phase), 1)
            for name in memory.peaks()
        }
        for phase in dict.fromkeys(each for each, _, _ in memory.rows)
    }
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


@contextmanager
def _phase(stack: Stack, figures: dict[str, Any], name: str) -> Iterator[None]:
    meter, started = CpuMeter(stack.trees()), time.perf_counter()
    yield
    figures[f"{name}_s"] = time.perf_counter() - started
    figures[f"{name}_cpu_s"] = meter.spent_s()


def _write_form(path: Path, count: int, width: int) -> int:
    """A multipart form with the input file. Returns the bytes of that file."""
    narrow = {} if width == WIDTH else {"dimensions": width}
    size = 0
    with path.open("wb") as form:
        form.write(
            f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n'
            'content-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'.encode()
        )
        for number in range(count):
            body = {"model": MODEL, "input": text_of(number), **narrow}
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/embeddings", "body": body}
            size += form.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        form.write(f"\r\n--{BOUNDARY}--\r\n".encode())
    return size


def _while_in(stack: Stack, batch_id: str, statuses: tuple[str, ...], memory: Memory) -> dict[str, Any]:
    while True:
        batch: dict[str, Any] = stack.api.json("GET", f"{BATCHES}/{batch_id}")
        memory.done = batch["request_counts"]["completed"]
        if batch["status"] not in statuses:
            return batch
        time.sleep(POLL_S)


def _check_output(stack: Stack, batch: dict[str, Any], count: int, width: int) -> int:
    """Read the output file. Returns its size in bytes."""
    size = lines = tokens = 0
    connection = http.client.HTTPConnection(urlsplit(stack.api.url).netloc, timeout=300)
    try:
        connection.request("GET", f"{FILES}/{batch['output_file_id']}/content", headers=stack.api.headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise BenchError(f"the output file: {answer.status}")
        for number, line in enumerate(answer):
            size += len(line)
            lines += 1
            if not line.startswith(b'","custom_id":"request-%d","response":{"status_code":200' % number, 49):
                raise BenchError(f"line {number} is {line[:120]!r}")
            tokens += int(line[line.rindex(b'"total_tokens":') + 15 :].partition(b"}")[0])
            if number % VECTOR_STEP == 0:
                embedding = orjson.loads(line)["response"]["body"]["data"][0]["embedding"]
                right = fake_vectors([text_of(number)], width, "bench")[0]
                if np.array(embedding, dtype="<f4").tobytes() != right.tobytes():
                    raise BenchError(f"the vector of line {number} is not the upstream's")
    finally:
        connection.close()
    if lines != count or tokens != batch["usage"]["total_tokens"]:
        raise BenchError(f"{lines} lines with {tokens} tokens, of {count} and {batch['usage']['total_tokens']}")
    return size


def main() -> int:
    """Measure once on a fresh stack, print the figures and keep them in bench/results."""
    parser = argparse.ArgumentParser(prog="python -m bench.batch_file", description=__doc__)
    parser.add_argument("--n", type=int, default=USUAL)
    parser.add_argument("--dimensions", type=int, default=WIDTH)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    options = parser.parse_args()
    server = os.environ.get("EMBEDMILL_TEST_POSTGRES_URL") if options.database == "postgres" else None
    machine = describe_machine()
    try:
        with Stack(server, configuration=NARROWABLE) as stack:
            figures = measure(stack, options.n, options.dimensions)
    except BenchError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    size = "" if (options.n, options.dimensions) == (USUAL, WIDTH) else f"-{options.n}x{options.dimensions}"
    kept = RESULTS / f"batch-file-{options.database}{size}.json"
    kept.write_bytes(orjson.dumps({"machine": machine} | figures, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
