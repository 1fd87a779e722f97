"""The latency of one route in this process: a moving average of its successful calls. Pure."""

from __future__ import annotations

# The last five calls or so decide.
WEIGHT = 0.2


class RouteLatency:
    """Belongs to one event loop."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None  # None: no call has succeeded yet

    def observe(self, seconds: float) -> None:
        """A call succeeded after so many seconds."""
        self.seconds = seconds if self.seconds is None else self.seconds + (seconds - self.seconds) * WEIGHT
