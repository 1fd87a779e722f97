"""Copies result lines of a job that may still run, in index order and without gaps."""

from __future__ import annotations

from collections.abc import Callable

from cli.client.api_client import Client
from cli.client.types import Job
from cli.errors import UsageError
from cli.files.line_output import FileLines, StdoutLines, line_start

RANGE_BYTES = 8 * 1024 * 1024  # of float32 vectors in one request
UNKNOWN_WIDTH = 1024


def copy_ready_lines(
    client: Client, job: Job, encoding: str, output: StdoutLines | FileLines, on_lines: Callable[[int], None]
) -> None:
    """Append the result lines that follow those written, up to the first index without an outcome.

    `on_lines` gets now and then how many there are.
    """

    def take(line: bytes) -> bool:
        if not line.startswith(line_start(output.lines)):
            return False  # an index before this one has no outcome yet
        output.write(line)
        return True

    step = max(1, RANGE_BYTES // (4 * (job.dimensions or UNKNOWN_WIDTH)))
    while output.lines < job.counts.settled:
        stop = output.lines + step
        client.take_results(job.id, encoding, lambda stop=stop: range(output.lines, stop), take)  # type: ignore[misc]
        on_lines(output.lines)
        if output.lines < stop:
            break
    output.flush()


def check_earlier_lines(client: Client, job: Job, encoding: str, output: StdoutLines | FileLines) -> None:
    """Raises UsageError when the lines of an earlier run are not the first results of this job."""
    if not isinstance(output, FileLines) or not output.lines:
        return
    first, last = output.ends()
    for index, line in ((0, first), (output.lines - 1, last)):
        found: list[bytes] = []

        def take(result: bytes, found: list[bytes] = found) -> bool:
            found.append(result)
            return True

        client.take_results(job.id, encoding, lambda index=index: range(index, index + 1), take)  # type: ignore[misc]
        if found[-1:] != [line]:
            raise UsageError(
                f"{output.path} holds something else than the first results of {job.id} (see its line {index + 1:,})",
                "name another file, or remove it",
            )
