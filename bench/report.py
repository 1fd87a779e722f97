"""Results as a page to read and as JSON to compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import orjson

from bench.measure import Spread, significant

RESULTS = Path(__file__).parent / "results"

Cell = Spread | float | int | str


def tell(results: dict[str, Any], label: str | None) -> None:
    """Print the figures and, under a label, keep them."""
    text = orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    print(text)
    if label:
        (RESULTS / f"{label}.json").write_text(text)


def page(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    parts = [
        f"# Measured on {machine['date']}",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
        f"Python {machine['python']}, revision {machine['revision']}, load before {machine['load_before']:.2f}.",
        f"{packages}.",
        "Median (lowest–highest). Compare CPU, not wall time: wall time swings by 10–30 % on a shared machine.",
    ]
    if rows := results.get("sync"):
        parts += [
            "## Sync: POST /v1/embeddings, API on core 0, load and fake upstream on core 1",
            table(
                ["case", "requests/s", "API CPU-ms", "p50 ms", "p99 ms", "floor requests/s", "floor CPU-ms", "÷ floor"],
                [[*row.values()] for row in rows],
            ),
            "Floor: the fake upstream called directly by the same generator; its CPU includes inventing the vectors.",
        ]
    for bulk in results.get("bulk", ()):
        parts += _bulk(bulk)
    for title, name, heads in (
        ("Status polls", "polls", ["case", "polls/s", "API CPU-ms/poll", "p50 ms", "p99 ms"]),
        (
            "Results download, one caller",
            "downloads",
            ["case", "MB/s", "vectors/s", "API CPU-µs/vector", "API peak RSS MB"],
        ),
        (
            "Ingest: a streamed body until the 202",
            "ingest",
            ["case", "MB/s (uncompressed)", "inputs/s", "API CPU-µs/input", "all CPU-µs/input", "API peak RSS MB"],
        ),
    ):
        for database, rows in results.get(name, {}).items():
            parts += [f"## {title} ({database}), API on core 0", table(heads, [[*row.values()] for row in rows])]
    return "\n\n".join(parts) + "\n"


def _bulk(bulk: dict[str, Any]) -> list[str]:
    parts = {name: str(spread) for name, spread in bulk["cpu_us"].items()}
    peaks = bulk["peak_rss_mb"]
    return [
        f"## Bulk: {bulk['inputs']:,} texts × 1536, submit to all readable, {bulk['database']}, nothing pinned",
        table(
            ["", "vectors/s", "CPU-µs/vector, all", "without the fake"],
            [
                ["embedmill", bulk["vectors_per_s"], bulk["cpu_us_all"], bulk["cpu_us_without_fake"]],
                ["floor", bulk["floor_vectors_per_s"], bulk["floor_cpu_us_with_fake"], bulk["floor_cpu_us"]],
            ],
        ),
        f"Submit (stream until the 202): {bulk['submit_s']} s. Inputs billed more than once: {bulk['billed_twice']}. "
        "All vectors compared with the upstream's. Floor: bench/floor.py.",
        table(["CPU-µs/vector", *parts], [["", *parts.values()]]),
        table(["peak RSS MB", *peaks], [["", *peaks.values()]]),
    ]


def table(heads: list[str], rows: list[list[Cell]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def store(results: dict[str, Any], label: str) -> Path:
    """Write `<label>.json` and `<label>.md`; returns the page's path."""
    RESULTS.mkdir(exist_ok=True)
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS
    (RESULTS / f"{label}.json").write_bytes(orjson.dumps(results, default=_plain, option=options))
    path = RESULTS / f"{label}.md"
    path.write_text(page(results))
    return path


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(type(value).__name__)


def _text(cell: Cell) -> str:
    return significant(cell) if isinstance(cell, float) else str(cell)
