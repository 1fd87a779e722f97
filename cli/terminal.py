"""What people see: stdout carries what was asked for, stderr everything about how it goes."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def table(*columns: str, rows: list[list[str]], right: tuple[str, ...] = ()) -> Table:
    """A borderless table; the columns named in `right` are aligned to the right. Cells are text, never markup."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


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
