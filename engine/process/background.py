"""Background loops: work that a process repeats until it ends. Errors are logged at a bounded rate and survived."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from models.errors import EmbedmillError, StorageUnavailable

log = logging.getLogger("embedmill.background")

LOG_EVERY_S = 30.0


class ErrorLog:
    """Logs the first error of a series, then one each LOG_EVERY_S seconds, and the end of the series."""

    def __init__(self, activity: str) -> None:
        self._activity = activity
        self._failures = 0
        self._log_at = 0.0
        self._failed_at = -math.inf

    def failed(self, error: Exception) -> None:
        """Record a failure. An error of ours is logged as one line, any other with its traceback."""
        self._failures += 1
        self._failed_at = now = time.monotonic()
        if self._failures > 1 and now < self._log_at:
            return
        self._log_at = now + LOG_EVERY_S
        extra = {"count": self._failures}
        if isinstance(error, EmbedmillError):
            advice = getattr(error, "advice", "")
            message = f"{error.message}{f'; {advice}' if advice else ''}"
            log.warning("%s failed and is tried again: %s", self._activity, message, extra=extra)
        else:
            log.error("%s failed and is tried again", self._activity, exc_info=error, extra=extra)

    def failing_within_s(self, seconds: float) -> bool:
        """True when the last failure is so few seconds ago."""
        return time.monotonic() - self._failed_at < seconds

    def succeeded(self) -> None:
        """End the series of errors, and log that it has ended."""
        if self._failures:
            log.warning("%s works again", self._activity, extra={"count": self._failures})
        self._failures = 0

    @contextlib.contextmanager
    def round(self) -> Iterator[GuardedBlock]:
        """One round of the activity: an error of any class is logged, and ends the block and nothing else."""
        with surviving(self.failed) as this:
            yield this
            self.succeeded()


@dataclass(slots=True)
class GuardedBlock:
    """What became of a block: its error, or None."""

    error: Exception | None = None


@contextlib.contextmanager
def surviving(
    report: Callable[[Exception], object] | None = None, *, passing: type[Exception] | tuple[()] = ()
) -> Iterator[GuardedBlock]:
    """End the block at an error of any class, report the error, and go on behind the block.

    Where work goes on whatever one part of it meets, this is the place that catches everything. Errors of the class
    `passing` are raised. Without `report` the caller reads the error from the block.
    """
    block = GuardedBlock()
    try:
        yield block
    except Exception as error:
        if isinstance(error, passing):
            raise
        block.error = error
        if report is not None:
            report(error)


@contextlib.contextmanager
def logging_errors(message: str, **fields: object) -> Iterator[GuardedBlock]:
    """As `surviving`: the error is logged with its traceback, for a fault of ours. StorageUnavailable is raised."""

    def report(error: Exception) -> None:
        log.error(message, exc_info=error, extra=fields)

    with surviving(report, passing=StorageUnavailable) as block:
        yield block


async def repeat(work: Callable[[], Awaitable[object]], errors: ErrorLog, *, every_s: float) -> None:
    """Do the work, and again after a pause, until cancelled. Errors of any class are logged and survived."""
    while True:
        with errors.round():
            await work()
        await asyncio.sleep(every_s)
