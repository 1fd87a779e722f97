"""Runs a check with a time limit: a check that raises or hangs becomes a finding, and the report goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cli.commands.doctor.finding import Finding
from cli.error_messages import explain
from models.errors import EmbedmillError

# Longer than any timeout inside a check, so that the check itself names the cause.
LIMIT_S = 10.0


def guarded(check: str, look: Callable[[], Finding], limit_s: float = LIMIT_S) -> Finding:
    """The finding, or the exception as one: a check that breaks, or takes too long, is a finding too."""
    return guarded_all(check, lambda: [look()], limit_s)[0]


def guarded_all(check: str, look: Callable[[], list[Finding]], limit_s: float = LIMIT_S) -> list[Finding]:
    """The same for a check that may have several findings."""
    found: list[list[Finding]] = []

    def keep() -> None:
        try:
            found.append(look())
        except EmbedmillError as error:
            found.append([Finding(check, "fail", error.message, "correct it; .env.example lists every setting")])
        except Exception as error:  # whatever a driver raises, the report must come to its end
            found.append([Finding(check, "fail", str(explain(error)), "see docs/operations.md")])

    # A daemon: what never answers must not keep the report, nor the end of the program.
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    thread.join(limit_s)
    late = Finding(check, "fail", f"it did not answer within {limit_s:g} s", "is it up, and not behind a firewall?")
    return found[0] if found else [late]
