"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` is empty where nothing needs doing."""

    check: str
    status: str  # ok | warn | fail
    detail: str
    fix: str = ""
