"""How long calls take, and whether that has become much worse. Pure."""

from __future__ import annotations

CALLS_TO_KNOW = 20
WORSE = 4.0
WORSE_BY_S = 1.0


class RecentLatency:
    """Two running means of the seconds of good calls: what is usual, and what is the case now."""

    __slots__ = ("_calls", "now_s", "usual_s")

    def __init__(self) -> None:
        self._calls = 0
        self.usual_s = 0.0
        self.now_s = 0.0

    def copy(self) -> RecentLatency:
        """The same to begin with."""
        other = RecentLatency()
        other._calls, other.usual_s, other.now_s = self._calls, self.usual_s, self.usual_s
        return other

    def felt(self, seconds: float) -> bool:
        """Note a good call; True when calls have become far slower than usual. What lasts becomes usual."""
        if self._calls < CALLS_TO_KNOW:
            self._calls += 1
            self.usual_s += (seconds - self.usual_s) / self._calls
            self.now_s = self.usual_s
            return False
        self.usual_s += (seconds - self.usual_s) * 0.02
        self.now_s += (seconds - self.now_s) * 0.2
        return self.now_s > WORSE * self.usual_s + WORSE_BY_S
