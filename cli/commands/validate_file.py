"""Checks a batch input file as the server's validation does, without a server: memory stays flat whatever its size."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cli.errors import UsageError
from engine.batches.custom_ids import CustomIdDigests
from engine.batches.line_checks import MAX_VARIANTS
from engine.batches.lines import LineFault, line_too_long, parse_batch_line
from engine.batches.reader import FileLine, LineSplitter

PIECE_BYTES = 1024 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024  # the server's default
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class FileFault(msgspec.Struct):
    """What is wrong with a line, or with the file as a whole (`line` None)."""

    line: int | None
    code: str
    message: str
    param: str | None = None
    custom_id: str | None = None
    fails_batch: bool = True  # unless the batch is lenient; False: the line fails, and the others run


@dataclass(slots=True)
class FileReport:
    """What the file holds. `requests`: lines that are not blank; `inputs`: texts and token arrays of the good ones."""

    requests: int = 0
    inputs: int = 0
    bad_lines: int = 0
    fails_batch: bool = False
    codes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)


def validate_file(
    path: Path,
    on_fault: Callable[[FileFault], None],
    on_bytes: Callable[[int], None] = lambda done: None,
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> FileReport:
    """Read the whole file; faults come in the order of the lines, and those of duplicates last. Raises UsageError."""
    report, digests, numbers, variants = FileReport(), CustomIdDigests(), array("q"), set[bytes]()

    def found(fault: FileFault) -> None:
        report.bad_lines += fault.line is not None
        report.fails_batch = report.fails_batch or fault.fails_batch
        report.codes[fault.code] += 1
        on_fault(fault)

    for line in _lines_of(path, on_bytes, max_line_bytes):
        report.requests += 1
        parsed = line_too_long(max_line_bytes) if line.data is None else parse_batch_line(line.data, None)
        if isinstance(parsed, LineFault):
            is_fatal = parsed.is_invalid_request_line
            found(FileFault(line.number, parsed.code, parsed.message, parsed.param, parsed.custom_id, is_fatal))
        else:
            report.inputs += len(parsed.inputs)
            report.models[parsed.model] += 1
            if len(variants) <= MAX_VARIANTS:
                variants.add(parsed.options_key)
        if parsed.custom_id is not None:
            digests.add(parsed.custom_id)
            numbers.append(line.number)
    for position, first in zip(*digests.repetitions(), strict=True):
        message = f"The custom_id of this line is that of line {numbers[first]} too: each must be unique."
        found(FileFault(numbers[position], "duplicate_custom_id", message, "custom_id"))
    if not report.requests:
        found(FileFault(None, "empty_file", "The file is empty: write one request on each line."))
    if len(variants) > MAX_VARIANTS:
        message = f"The file has more than {MAX_VARIANTS} different models and sets of options: make several of it."
        found(FileFault(None, "too_many_variants", message))
    return report


def _lines_of(path: Path, on_bytes: Callable[[int], None], max_line_bytes: int) -> Iterator[FileLine]:
    splitter, done = LineSplitter(max_line_bytes=max_line_bytes), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            if done == 0:
                _refuse_packed(path, piece)
            done += len(piece)
            yield from splitter.feed(piece)
            on_bytes(done)
    yield from splitter.finish()


def _refuse_packed(path: Path, start: bytes) -> None:
    for magic, name in COMPRESSIONS.items():
        if start.startswith(magic):
            raise UsageError(
                f"{path.name} is packed with {name}", "unpack it: the server reads input files as they are"
            )
