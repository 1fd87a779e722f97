"""Runs a check with a time limit: a check that raises or hangs becomes a finding, and the report goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cli.commands.doctor.finding import Finding
from cli.error_messages import explain
from engine.process.background import surviving
from models.errors import EmbedmillError, UpstreamError

# Longer than any timeout inside a check, so that the check itself names the cause.
LIMIT_S = 10.0


def run_check(check: str, check_function: Callable[[], Finding], limit_s: float = LIMIT_S) -> Finding:
    """The finding, or the exception as one: a check that breaks, or takes too long, is a finding too."""
    return run_checks(check, lambda: [check_function()], limit_s)[0]


def run_checks(
    check: str,
    check_function: Callable[[], list[Finding]],
    limit_s: float = LIMIT_S,
    *,
    fix: str = "",
) -> list[Finding]:
    """As `run_check`, for a check with several findings. `fix`: the advice where it raises."""
    results: list[list[Finding]] = []

    def run() -> None:
        with surviving(report):  # the report must come to its end
            results.append(check_function())

    def report(error: Exception) -> None:
        if isinstance(error, EmbedmillError):
            advice = error.advice if isinstance(error, UpstreamError) else ""
            message, usual = error.message, advice or "correct it; .env.example lists every setting"
        else:
            message, usual = str(explain(error)), "see docs/operations.md"
        results.append([Finding(check, "fail", message, fix or usual)])

    # A daemon thread: a check that never returns must not block the report or the exit.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    timed_out = Finding(
        check, "fail", f"it did not answer within {limit_s:g} s", "is it up, and not behind a firewall?"
    )
    return results[0] if results else [timed_out]
