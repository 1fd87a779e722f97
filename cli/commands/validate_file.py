"""Checks a batch input file as the server's validation does, without a server: memory stays flat whatever its size."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import msgspec

from cli.errors import UsageError
from engine.batches.custom_ids import CustomIdDigests, CustomIdHashes, Numbers, are_among
from engine.batches.line_checks import MAX_VARIANTS
from engine.batches.lines import BatchLine, LineFault, line_too_long, parse_batch_line
from engine.batches.reader import FileLine, LineSplitter

PIECE_BYTES = 256 * 1024
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
    report, hashes, variants = FileReport(), CustomIdHashes(), set[bytes]()

    def found(fault: FileFault) -> None:
        report.bad_lines += fault.line is not None
        report.fails_batch = report.fails_batch or fault.fails_batch
        report.codes[fault.code] += 1
        on_fault(fault)

    for line, parsed in chain.from_iterable(_parsed(path, max_line_bytes, on_bytes)):
        report.requests += 1
        if isinstance(parsed, LineFault):
            is_fatal = parsed.is_invalid_request_line
            found(FileFault(line.number, parsed.code, parsed.message, parsed.param, parsed.custom_id, is_fatal))
        else:
            report.inputs += len(parsed.inputs)
            report.models[parsed.model] += 1
            if len(variants) <= MAX_VARIANTS:
                variants.add(parsed.options_key)
        if parsed.custom_id is not None:
            hashes.add_hash(hash(parsed.custom_id))
    repeated = hashes.repeated()
    for number, first in _repetitions(path, max_line_bytes, repeated) if len(repeated) else ():
        message = f"The custom_id of this line is that of line {first} too: each must be unique."
        found(FileFault(number, "duplicate_custom_id", message, "custom_id"))
    if not report.requests:
        found(FileFault(None, "empty_file", "The file is empty: write one request on each line."))
    if len(variants) > MAX_VARIANTS:
        message = f"The file has more than {MAX_VARIANTS} different models and sets of options: make several of it."
        found(FileFault(None, "too_many_variants", message))
    return report


def _repetitions(path: Path, max_line_bytes: int, repeated: Numbers) -> Iterator[tuple[int, int]]:
    """Lines whose custom_id an earlier line has, and that line: of those whose hash occurs more than once."""
    digests, numbers = CustomIdDigests(), array("q")
    for pairs in _parsed(path, max_line_bytes):
        known = [(line.number, each.custom_id) for line, each in pairs if each.custom_id is not None]
        for position in are_among([custom_id for _, custom_id in known], repeated):
            number, custom_id = known[position]
            digests.add(custom_id)
            numbers.append(number)
    for position, first in zip(*digests.repetitions(), strict=True):
        yield numbers[position], numbers[first]


def _parsed(
    path: Path, max_line_bytes: int, on_bytes: Callable[[int], None] = lambda done: None
) -> Iterator[list[tuple[FileLine, BatchLine | LineFault]]]:
    """The lines of a file, some thousands at a time."""
    too_long = line_too_long(max_line_bytes)

    def pairs(lines: list[FileLine]) -> list[tuple[FileLine, BatchLine | LineFault]]:
        return [(line, too_long if line.data is None else parse_batch_line(line.data, None)) for line in lines]

    splitter, done = LineSplitter(max_line_bytes=max_line_bytes), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            if done == 0:
                _refuse_packed(path, piece)
            done += len(piece)
            yield pairs(splitter.feed(piece))
            on_bytes(done)
    yield pairs(splitter.finish())


def _refuse_packed(path: Path, start: bytes) -> None:
    for magic, name in COMPRESSIONS.items():
        if start.startswith(magic):
            raise UsageError(
                f"{path.name} is packed with {name}", "unpack it: the server reads input files as they are"
            )
