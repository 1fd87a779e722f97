"""How a job is going: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.text import Text

from cli.client.types import Job, resume_hint, status_text
from cli.output.amounts import bar
from cli.output.terminal import duration

LINE_EVERY_S = 5.0
LINE_EVERY_FRACTION = 0.1


class JobProgress(Protocol):
    """Shows a corpus being read, then a job being worked on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def checking(self, name: str, fraction: float) -> None:
        """So much of the corpus, from 0 to 1, has been read, before any of it is sent."""

    def reading(self, name: str, fraction: float) -> None:
        """So much of the corpus, from 0 to 1, has been sent."""

    def working(self, job: Job) -> None:
        """The job has come this far."""

    def saving(self, name: str, fraction: float) -> None:
        """So much of the results, from 0 to 1, has been written."""


def job_progress(console: Console) -> JobProgress:
    """The bar where there is a terminal to draw it on, lines where there is none."""
    return BarProgress(console) if console.is_terminal else LineProgress(console)


class BarProgress:
    """A progress bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = bar(console)
        self._wait_reasons = WaitReasonPrinter(console)
        self._task = self._progress.add_task("starting", total=None, facts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def checking(self, name: str, fraction: float) -> None:
        """As `JobProgress.checking`."""
        self._fraction(f"checking {name}", fraction)

    def reading(self, name: str, fraction: float) -> None:
        """As `JobProgress.reading`."""
        self._fraction(f"sending {name}", fraction)

    def saving(self, name: str, fraction: float) -> None:
        """As `JobProgress.saving`."""
        self._fraction(f"saving {name}", fraction)

    def _fraction(self, what: str, fraction: float) -> None:
        self._progress.update(self._task, description=what, total=1.0, completed=fraction, facts=f"{fraction:.0%}")

    def working(self, job: Job) -> None:
        """As `JobProgress.working`."""
        self._wait_reasons.print_if_new(job)
        self._progress.update(
            self._task,
            description=status_text(job),
            total=job.counts.total,
            completed=job.counts.settled,
            facts=summary(job),
        )


class LineProgress:
    """A line when five seconds or ten per cent have passed since the last one, and one at the end."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._printed_at = clock()
        self._printed_fraction = 0.0
        self._last_status = ""
        self._wait_reasons = WaitReasonPrinter(console)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def checking(self, name: str, fraction: float) -> None:
        """As `JobProgress.checking`."""
        self._fraction(f"checking {name}", fraction)

    def reading(self, name: str, fraction: float) -> None:
        """As `JobProgress.reading`."""
        self._fraction(f"sending {name}", fraction)

    def saving(self, name: str, fraction: float) -> None:
        """As `JobProgress.saving`."""
        self._fraction(f"saving {name}", fraction)

    def _fraction(self, what: str, fraction: float) -> None:
        if self._clock() - self._printed_at >= LINE_EVERY_S:
            self._print(f"{what}: {fraction:.0%}", self._printed_fraction)

    def working(self, job: Job) -> None:
        """As `JobProgress.working`; the end and a pause are printed at once."""
        fraction = job.counts.settled / job.counts.total if job.counts.total else 0.0
        self._wait_reasons.print_if_new(job)
        is_due = (
            self._clock() - self._printed_at >= LINE_EVERY_S or fraction >= self._printed_fraction + LINE_EVERY_FRACTION
        )
        # The end and a pause are printed at once, and only once.
        is_settled = job.finished or job.status == "paused"
        if (is_settled and job.status != self._last_status) or (is_due and not is_settled):
            hint = f" ({resume_hint(job)})" if job.status == "paused" else ""
            self._print(f"{status_text(job)}: {summary(job)}{hint}", fraction)
        self._last_status = job.status

    def _print(self, line: str, fraction: float) -> None:
        self._console.print(Text(line))
        self._printed_at = self._clock()
        self._printed_fraction = fraction


def summary(job: Job) -> str:
    """`12,288/30,000 · 41% · 8,123/s · eta 3 s · $0.0246 · 2 failed`, without what is not known."""
    counts = job.counts
    if counts.total is None:
        facts = [f"{counts.settled:,} so far"]
    else:
        # Rounded down: 100% must mean all of them.
        facts = [f"{counts.settled:,}/{counts.total:,}", f"{counts.settled * 100 // max(counts.total, 1)}%"]
    if job.rate and job.rate.inputs_per_second:
        facts.append(f"{job.rate.inputs_per_second:,.0f}/s")
    if not job.finished and job.eta_seconds is not None:
        facts.append(f"eta {duration(job.eta_seconds)}")
    facts.append(f"${job.cost_usd.normalize():f}")
    if counts.failed:
        facts.append(f"{counts.failed:,} failed")
    facts += [group.code for group in job.errors if not group.count]  # what ended the job, not an input
    if job.waiting_on and job.status != "paused":
        provider = f" {job.waiting.provider}" if job.waiting and job.waiting.provider else ""
        facts.append(f"waiting on {job.waiting_on}{provider}")
    return " · ".join(facts)


def wait_reason(job: Job) -> str | None:
    """Why a job waits, since when, what to do and when it is tried again, in one line; None when it does not wait."""
    waiting = job.waiting
    if waiting is None or job.finished:
        return None
    since = f" since {datetime.fromtimestamp(waiting.since):%H:%M:%S}" if waiting.since else ""
    facts = [f"waiting on {waiting.provider}{since}: {waiting.message or waiting.code}"]
    if waiting.advice:
        facts.append(f"→ {waiting.advice}")
    if waiting.next_attempt_at:
        facts.append(f"next try at {datetime.fromtimestamp(waiting.next_attempt_at):%H:%M:%S}")
    return " · ".join(facts)


class WaitReasonPrinter:
    """Prints why a job waits, once for each reason."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: tuple[str, str] | None = None

    def print_if_new(self, job: Job) -> None:
        """Print why the job waits, unless that was the last reason printed."""
        key = (job.waiting.provider, job.waiting.code) if job.waiting else None
        if key != self._last and (line := wait_reason(job)):
            self._console.print(Text(line))
        self._last = key
