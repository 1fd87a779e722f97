"""One run on a fresh stack, from the command line: `--n` and `--database`; its figures are printed and kept."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import orjson

from bench.client import BenchError
from bench.machine import describe_machine
from bench.report import RESULTS
from bench.stack import Stack


def one_run(name: str, told: str | None, measure: Callable[[Stack, int], dict[str, Any]], *, n: int) -> int:
    """Run `measure` with a stack and a size, by default `n`, and keep what it returns in bench/results; exit status.

    Other sizes than the usual one are kept beside it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=told)
    parser.add_argument("--n", type=int, default=n)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    given = parser.parse_args()
    server = os.environ.get("EMBEDMILL_TEST_POSTGRES_URL") if given.database == "postgres" else None
    machine = describe_machine()
    try:
        with Stack(server) as stack:
            figures = measure(stack, given.n)
    except BenchError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    size = "" if given.n == n else f"-{given.n}"
    kept = RESULTS / f"{name.replace('_', '-')}-{given.database}{size}.json"
    kept.write_bytes(orjson.dumps({"machine": machine} | figures, option=orjson.OPT_INDENT_2))
    return 0
