"""`python -m bench.float_writers`: libraries that write a float32 row as a JSON array, in CPU time of one thread.

A writer must give numbers that read back as the same float32; the table says how long each of them is, too.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from bench.machine import describe_machine
from bench.report import RESULTS
from engine.batches.output_lines import success_line
from models.embedding import Matrix

WIDTH, ROWS, REPETITIONS = 1536, 400, 5
BATCH_ID = "batch_0123456789abcdef0123456789abcdef"
Writer = Callable[[Matrix], bytes]


def _orjson(row: Matrix) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def _json(row: Matrix) -> bytes:
    return json.dumps(row.tolist(), separators=(",", ":")).encode()


def _pyarrow() -> Writer:
    arrow, compute = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.compute")

    def write(row: Matrix) -> bytes:
        texts = compute.cast(arrow.array(row), arrow.string())
        joined = compute.binary_join(arrow.ListArray.from_arrays([0, len(row)], texts), ",")[0]
        return b"[%b]" % joined.as_buffer().to_pybytes()

    return write


def _line(base64: bool) -> Writer:
    def write(row: Matrix) -> bytes:
        return success_line(BATCH_ID, 7, "request-7", "openai/small", [row], base64=base64, tokens=33)

    return write


def measure() -> dict[str, Any]:
    """By writer: microseconds of CPU a row, rows a second and core, bytes a number."""
    rows = np.random.default_rng(7).standard_normal((ROWS, WIDTH)).astype("<f4")
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    writers: dict[str, Writer] = {
        "orjson": _orjson,
        "json": _json,
        "pyarrow": _pyarrow(),
        "a line of output, float": _line(base64=False),
        "a line of output, base64": _line(base64=True),
    }
    figures = {}
    for name, write in writers.items():
        seconds = min(_cpu_s(write, rows) for _ in range(REPETITIONS))
        text = write(rows[0])
        if text.startswith(b"["):
            assert np.array(json.loads(text), dtype="<f4").tobytes() == rows[0].tobytes(), name
        figures[name] = {
            "cpu_us": round(seconds / ROWS * 1e6, 1),
            "rows_per_s_and_core": round(ROWS / seconds),
            "bytes_per_number": round(len(text) / WIDTH, 2),
        }
    return figures


def _cpu_s(write: Writer, rows: Matrix) -> float:
    started = time.process_time()
    for row in rows:
        write(row)
    return time.process_time() - started


def main() -> int:
    """Measure, print the figures and keep them in bench/results."""
    machine, figures = describe_machine(), measure()
    text = orjson.dumps({"machine": machine, "writers": figures}, option=orjson.OPT_INDENT_2)
    (RESULTS / "float-writers.json").write_bytes(text)
    print(text.decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
