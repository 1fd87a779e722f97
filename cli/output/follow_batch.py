"""Follows a batch to its end, and prints how it ended."""

from __future__ import annotations

from cli.client.batches_client import Batches
from cli.client.file_types import Batch
from cli.errors import CliError, Failure
from cli.output.amounts import AmountProgress, RateMeter, amount_text, count_text
from cli.output.terminal import err

SHOWN_ERRORS = 10


def follow_batch(batches: Batches, batch_id: str, progress: AmountProgress) -> Batch:
    """Wait until the batch has ended. Ctrl-C leaves it as it is and says how to come back to it."""
    meter = RateMeter()
    batch: Batch | None = None
    try:
        for batch in batches.changes(batch_id):
            done, total = batch.counts.completed + batch.counts.failed, batch.counts.total
            rate = meter.rate(done)
            fraction = done / total if total else None
            progress.show(batch.status.replace("_", " "), fraction, batch_summary(batch, rate))
    except KeyboardInterrupt:
        raise CliError(
            f"interrupted; {batch_id} goes on without this command",
            f"follow it with `embedmill batches wait {batch_id}`, then `embedmill batches download {batch_id}`; "
            f"stop it with `embedmill batches cancel {batch_id}`",
            failure=Failure.INTERRUPTED,
        ) from None
    assert batch is not None  # changes() yields at least once
    return batch


def batch_summary(batch: Batch, rate: float | None = None) -> str:
    """`1,200/10,000 · 12% · 8,123/s · eta 3 s · 2 failed`, without what is not known."""
    counts = batch.counts
    if not counts.total:
        return ""
    summary = amount_text(counts.completed + counts.failed, counts.total, rate, size=count_text)
    return f"{summary} · {counts.failed:,} failed" if counts.failed else summary


def print_batch_outcome(batch: Batch) -> None:
    """Print on stderr how a batch ended, and what is wrong with its input file."""
    summary = batch_summary(batch)
    err.print(f"{batch.id} {batch.status.replace('_', ' ')}{f': {summary}' if summary else ''}", markup=False)
    errors = batch.errors.data if batch.errors else []
    for error in errors[:SHOWN_ERRORS]:
        where = f"line {error.line:,}: " if error.line is not None else ""
        err.print(f"  {where}{error.code or 'error'}: {error.message}", markup=False)
    more = (batch.error_count or len(errors)) - len(errors[:SHOWN_ERRORS])
    if more > 0:
        err.print(f"  and {more:,} more: `embedmill batches show {batch.id}`", markup=False)
