"""How fast something moves and when it will be done: bytes of a file, lines of a batch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from cli.output.terminal import duration

LINE_EVERY_S = 5.0
SHORTEST_PAUSE_S = 1.0
LINE_EVERY_FRACTION = 0.1
RATE_OVER_S = 15.0
SAMPLE_EVERY_S = 0.25
UNITS = ("bytes", "kB", "MB", "GB", "TB")


class RateMeter:
    """The rate over the last seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque()

    def rate(self, done: float) -> float | None:
        """Amount a second, now that `done` is reached; None while that cannot be said."""
        now = self._clock()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((now, done))
        while len(self._samples) > 1 and now - self._samples[1][0] >= RATE_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return (done - before) / (now - since) if now > since and done > before else None


class AmountProgress(Protocol):
    """Shows how much is done."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, what: str, fraction: float | None, facts: str) -> None:
        """`what` goes on, and so much of it, from 0 to 1, is done; None: nobody knows."""


def amount_progress(console: Console) -> AmountProgress:
    """A bar where there is a terminal to draw it on, lines where there is none."""
    return AmountBar(console) if console.is_terminal else AmountLines(console)


def bar(console: Console) -> Progress:
    """A bar with what goes on before it and the field `facts` behind it; neither is taken for markup."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        expand=True,
        transient=True,
    )


class AmountBar:
    """A bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = bar(console)
        self._task = self._progress.add_task("starting", total=None, facts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, what: str, fraction: float | None, facts: str) -> None:
        """As `AmountProgress.show`."""
        total = None if fraction is None else 1.0
        self._progress.update(self._task, description=what, total=total, completed=fraction or 0.0, facts=facts)


class AmountLines:
    """A line when five seconds or ten per cent have passed since the last one, or something else goes on.

    One a second at the most: what is quicker needs none.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._printed: tuple[str, float] = ("", 0.0)
        self._printed_at = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, what: str, fraction: float | None, facts: str) -> None:
        """As `AmountProgress.show`."""
        before, printed_fraction = self._printed
        elapsed_s = self._clock() - self._printed_at
        if elapsed_s < SHORTEST_PAUSE_S:
            return
        is_further = fraction is not None and fraction >= printed_fraction + LINE_EVERY_FRACTION
        if what != before or is_further or elapsed_s >= LINE_EVERY_S:
            self._console.print(Text(f"{what}: {facts}" if facts else what))
            self._printed, self._printed_at = (what, fraction or 0.0), self._clock()


def amount_text(done: float, total: float, rate: float | None, *, size: Callable[[float], str]) -> str:
    """`12.5 MB/300 MB · 4% · 45.1 MB/s · eta 6 s`, without what is not known."""
    facts = [f"{size(done)}/{size(total)}", f"{int(done * 100 // total) if total else 100}%"]
    if rate:
        facts.append(f"{size(rate)}/s")
        if done < total:
            facts.append(f"eta {duration((total - done) / rate)}")
    return " · ".join(facts)


def bytes_text(size: float) -> str:
    """`12.5 MB`, in powers of a thousand."""
    unit = 0
    while size >= 999.5 and unit < len(UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{size:.3g} {UNITS[unit]}"


def count_text(count: float) -> str:
    """`12,345`."""
    return f"{count:,.0f}"
