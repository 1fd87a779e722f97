"""Consoles and tables: stdout carries the requested output, stderr progress and messages."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CliError, Failure, UsageError
from cli.output.streams import discard_output


class TolerantConsole(Console):
    """A console for output that may be lost: a closed pipe or a full disk does not end the command."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As `Console.print`; a stream that cannot be written is dropped."""
        try:
            super().print(*objects, **options)
            self.file.flush()
        except (OSError, ValueError):  # ValueError: the stream was closed
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """rich would end the process."""
        discard_output("stderr" if self.stderr else "stdout")


# Without a terminal, a table is not folded to a screen's width.
_WIDTH = None if sys.stdout is not None and sys.stdout.isatty() else 1000
out = Console(highlight=False, soft_wrap=True, width=_WIDTH)
tolerant_out = TolerantConsole(highlight=False, soft_wrap=True, width=_WIDTH)
err = TolerantConsole(stderr=True, highlight=False, soft_wrap=True)


def table(*columns: str, rows: list[list[str]], right: tuple[str, ...] = ()) -> Table:
    """A borderless table; columns named in `right` are right-aligned; the first is never folded: ids are copied."""
    new_table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        new_table.add_column(
            name, justify="right" if name in right else "left", overflow="fold", no_wrap=name == columns[0]
        )
    for row in rows:
        new_table.add_row(*(Text(cell) for cell in row))  # Text: never taken for markup
    return new_table


def time_text(at: float | None) -> str:
    """An instant (unix seconds) in the time zone of this machine; empty for None."""
    return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M") if at else ""


def print_more(has_more: bool, limit: int) -> None:
    """Below a list: how to see more of it, where there is more."""
    if has_more:
        out.print(f"… and more: --limit {min(limit * 2, 100)}", style="dim")


def confirm(question: str) -> None:
    """Ask before what cannot be undone. Raises UsageError without a terminal, CliError where the answer is no."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"nothing was done: {question} Nobody can be asked without a terminal", "--yes answers it")
    err.print(f"{question} [y/N]: ", end="", markup=False)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CliError("nothing was done", failure=Failure.INTERRUPTED)


def duration(seconds: float | None) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`; `?` when unknown."""
    if seconds is None:
        return "?"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def print_json(raw: bytes) -> None:
    """JSON on stdout, indented, coloured on a terminal only."""
    out.print_json(raw.decode("utf-8"), indent=2)
