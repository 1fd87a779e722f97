"""`embedmill files validate`: each bad line with its reason, then what the file holds."""

from __future__ import annotations

from pathlib import Path

import msgspec

from cli.commands.validate_file import FileFault, FileReport, validate_file
from cli.errors import CODES, ExitCode, Failure
from cli.output.amounts import RateMeter, amount_progress, amount_text, bytes_text
from cli.output.streams import data_stream
from cli.output.terminal import err

SHOWN_MODELS = 10


def print_report(path: Path, *, limit: int, as_json: bool) -> ExitCode:
    """Check the file and print what is found: bad lines on stdout, the summary on stderr. Raises UsageError."""
    size, meter, stream, listed = path.stat().st_size, RateMeter(), data_stream(), 0

    def on_fault(fault: FileFault) -> None:
        nonlocal listed
        listed += 1
        if listed <= limit:
            stream.write((msgspec.json.encode(fault) if as_json else _line(fault).encode()) + b"\n")

    with amount_progress(err) as progress:

        def on_bytes(done: int) -> None:
            progress.show(
                f"checking {path.name}", done / size, amount_text(done, size, meter.rate(done), size=bytes_text)
            )

        report = validate_file(path, on_fault, on_bytes)
    stream.flush()
    if listed > limit:
        err.print(f"{listed - limit:,} more bad lines are not listed: --limit {listed} lists all", markup=False)
    err.print(_summary(path, report), markup=False)
    return CODES[Failure.INPUT_ERRORS] if report.codes else ExitCode.DONE


def _line(fault: FileFault) -> str:
    where = f"line {fault.line}: " if fault.line is not None else ""
    custom_id = f" (custom_id {msgspec.json.encode(fault.custom_id).decode()})" if fault.custom_id else ""
    return f"{where}{fault.code}: {fault.message}{custom_id}{'' if fault.fails_batch else ' [this line only]'}"


def _summary(path: Path, report: FileReport) -> str:
    if not report.requests:
        return f"{path.name}: the file is empty: write one request on each line"
    models = [f"{name} ({count:,})" for name, count in report.models.most_common(SHOWN_MODELS)]
    if len(report.models) > SHOWN_MODELS:
        models.append(f"{len(report.models) - SHOWN_MODELS:,} more")
    bad = f"{report.bad_lines:,} bad" if report.bad_lines else "all good"
    facts = [f"{_counted(report.requests, 'request')}, {bad}", _counted(report.inputs, "input")]
    if models:
        facts.append(f"models: {', '.join(models)}")
    facts += [f"{count:,} × {code}" for code, count in report.codes.most_common()]
    if report.fails_batch:
        facts.append("a batch of it would fail its validation (create it --lenient, and the good lines run)")
    return f"{path.name}: {' · '.join(facts)}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
