"""`python -m bench.scale`: one job of a million inputs, from one streamed request to every vector read and compared.

Memory of the API, the workers and the scheduler is sampled all the while; what counts is how it grows with the inputs.
Needs 20 GB of free disk for a million inputs. With --database postgres, EMBEDMILL_TEST_POSTGRES_URL names the server.
"""

from __future__ import annotations

import http.client
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import orjson
import pybase64

from bench.bulk import ENDED, JOBS, NDJSON
from bench.client import BenchError
from bench.one_run import one_run
from bench.stack import MODEL, WIDTH, Stack
from bench.texts import text_of
from providers.fake import fake_vectors

SAMPLED = ("api", "worker", "scheduler")
SAMPLE_S = 1.0
BLOCK = 2000
# Every so many of the ndjson lines is decoded and compared; of all of them the index is.
NDJSON_STEP = 50


class Memory:
    """Resident sizes over time, each beside the number of inputs that were done by then."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.done = 0
        self.rows: list[tuple[str, int, dict[str, float]]] = []
        self.phase = ""
        self.wal_mb = 0.0

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        wal = self._stack.folder / "data" / "embedmill.db-wal"
        while not self._over.wait(SAMPLE_S):
            sizes = {name: self._stack.tree(name).rss_mb() for name in SAMPLED}
            self.rows.append((self.phase, self.done, sizes))
            if wal.exists():
                self.wal_mb = max(self.wal_mb, wal.stat().st_size / 2**20)

    def slopes(self, phase: str, skip: int) -> dict[str, float]:
        """MB for each 100,000 inputs of a phase: the least-squares line, once `skip` inputs have warmed things up."""
        rows = [(done, sizes) for name, done, sizes in self.rows if name == phase and done >= skip]
        if len({done for done, _ in rows}) < 3:
            return {}
        done = np.array([row[0] for row in rows]) / 100_000
        return {name: round(float(np.polyfit(done, [sizes[name] for _, sizes in rows], 1)[0]), 2) for name in SAMPLED}

    def peaks(self) -> dict[str, float]:
        return {name: round(max(sizes[name] for _, _, sizes in self.rows), 1) for name in SAMPLED}


def measure(stack: Stack, count: int) -> dict[str, Any]:
    """All figures of one job of `count` inputs. Raises BenchError when anything is not as it should be."""
    figures: dict[str, Any] = {"database": stack.database, "inputs": count}
    skip = count // 5
    with Memory(stack) as memory:
        started = time.perf_counter()
        memory.phase = "run"
        job_id, figures["submit_s"] = _submit(stack, count, memory)
        job = _until_ended(stack, job_id, memory, figures)
        figures["run_s"] = time.perf_counter() - started
        if job["counts"] != {"total": count, "completed": count, "failed": 0, "pending": 0} or job["progress"] != 1.0:
            raise BenchError(f"the job ended as {orjson.dumps(job).decode()}")
        billed = stack.fake.json("GET", "/__stats")["billed_inputs"]
        figures["billed_twice"] = billed - count
        figures["database_mb"] = _database_mb(stack)
        for phase, read in (("npy", _read_npy), ("ndjson", _read_ndjson)):
            memory.phase, memory.done = phase, 0
            started = time.perf_counter()
            read(stack, job_id, count, memory)
            figures[f"read_{phase}_s"] = time.perf_counter() - started
        memory.phase = "delete"
        started = time.perf_counter()
        stack.api.call("DELETE", f"{JOBS}/{job_id}", expect=200)
        figures["delete_s"] = time.perf_counter() - started
        figures["removed_after_s"] = _until_removed(stack, started)
    figures["mb_per_100k_inputs"] = {phase: memory.slopes(phase, skip) for phase in ("run", "npy", "ndjson")}
    figures["peak_rss_mb"] = memory.peaks()
    figures["peak_wal_mb"] = round(memory.wal_mb, 1)
    return {name: round(value, 2) if isinstance(value, float) else value for name, value in figures.items()}


def _submit(stack: Stack, count: int, memory: Memory) -> tuple[str, float]:
    with tempfile.TemporaryDirectory(prefix="embedmill-bench-") as folder:
        corpus = Path(folder) / "texts.ndjson"
        with corpus.open("wb") as file:
            for number in range(count):
                file.write(orjson.dumps(text_of(number), option=orjson.OPT_APPEND_NEWLINE))
        over = threading.Event()
        watching = threading.Thread(target=_watch, args=(stack, memory, over), daemon=True)
        watching.start()
        started = time.perf_counter()
        job = stack.api.upload(f"{JOBS}?model={quote(MODEL, safe='')}", corpus, NDJSON)
        took_s = time.perf_counter() - started
        over.set()
        watching.join()
    return job["id"], took_s


def _watch(stack: Stack, memory: Memory, over: threading.Event) -> None:
    while not over.wait(1.0):
        jobs = stack.api.json("GET", f"{JOBS}?limit=1")["data"]
        memory.done = jobs[0]["counts"]["completed"] if jobs else 0


def _until_ended(stack: Stack, job_id: str, memory: Memory, figures: dict[str, Any]) -> dict[str, Any]:
    etas: list[tuple[float, float]] = []
    while True:
        job: dict[str, Any] = stack.api.json("GET", f"{JOBS}/{job_id}")
        memory.done = job["counts"]["completed"]
        if job["status"] in ENDED:
            break
        if job["eta_seconds"]:
            etas.append((time.perf_counter(), job["eta_seconds"]))
        time.sleep(0.5)
    ended = time.perf_counter()
    # How far the promised end was from the real one, as a share of what was left.
    off = [abs(at + eta - ended) / (ended - at) for at, eta in etas if ended - at > 5.0]
    figures["eta_median_error"] = round(float(np.median(off)), 2) if off else None
    return job


def _read_npy(stack: Stack, job_id: str, count: int, memory: Memory) -> None:
    size = WIDTH * 4
    with _stream(stack, f"{JOBS}/{job_id}/results?format=npy") as answer:
        if np.lib.format.read_magic(answer) != (1, 0):
            raise BenchError("not an npy file")
        shape, fortran, kind = np.lib.format.read_array_header_1_0(answer)
        if (shape, fortran, kind) != ((count, WIDTH), False, np.dtype("<f4")):
            raise BenchError(f"an array of {shape} {kind}")
        for start in range(0, count, BLOCK):
            wanted = fake_vectors([text_of(n) for n in range(start, min(start + BLOCK, count))], WIDTH, "bench")
            if answer.read(len(wanted) * size) != wanted.tobytes():
                raise BenchError(f"the vectors from {start} on are not the upstream's, in order")
            memory.done = start
        if answer.read(1):
            raise BenchError("more bytes than vectors")


def _read_ndjson(stack: Stack, job_id: str, count: int, memory: Memory) -> None:
    lines = 0
    with _stream(stack, f"{JOBS}/{job_id}/results?format=ndjson&encoding_format=base64") as answer:
        for number, line in enumerate(answer):
            if not line.startswith(b'{"index":%d,' % number):
                raise BenchError(f"line {number} is {line[:80]!r}")
            if number % NDJSON_STEP == 0:
                got = pybase64.b64decode(orjson.loads(line)["embedding"])
                if got != fake_vectors([text_of(number)], WIDTH, "bench").tobytes():
                    raise BenchError(f"the vector of line {number} is not the upstream's")
                memory.done = number
            lines += 1
    if lines != count:
        raise BenchError(f"{lines} lines of {count}")


@contextmanager
def _stream(stack: Stack, path: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(stack.api.url).netloc, timeout=300)
    try:
        connection.request("GET", path, headers=stack.api.headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise BenchError(f"{path}: {answer.status}")
        yield answer
    finally:
        connection.close()


def _until_removed(stack: Stack, since: float) -> float:
    from bench.costs import ask

    while ask(stack.database_url, "select count(*) from jobs"):
        if time.perf_counter() - since > 600:
            raise BenchError("the deleted job is still there after ten minutes")
        time.sleep(0.5)
    return time.perf_counter() - since


def _database_mb(stack: Stack) -> float:
    from bench.costs import ask

    if stack.database_name == "sqlite":
        return round((stack.folder / "data" / "embedmill.db").stat().st_size / 2**20)
    return float(ask(stack.database_url, "select pg_database_size(current_database())")) // 2**20


if __name__ == "__main__":
    sys.exit(one_run("scale", __doc__, measure, n=1_000_000))
