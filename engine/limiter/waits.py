"""Which calls of one shard wait for quota, and for how long: so that its job can say so while nothing lands."""

from __future__ import annotations

import time

HELD_UP_S = 1.0  # shorter waits are no news


class Waits:
    """The waits for quota that are under way, and the one that ended last. On time.monotonic()."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._next_at = 0.0
        self._held_up_until = 0.0
        # True while the wait that ended last was ended by something else than its turn.
        self.in_vain = False

    def waiting(self, slot: str, wait_s: float) -> None:
        """This call waits, and will ask again in so many seconds."""
        now = time.monotonic()
        self._began.setdefault(slot, now)
        self._next_at = now + wait_s

    def over(self, slot: str, *, may_start: bool) -> None:
        now = time.monotonic()
        self.in_vain = not may_start
        began = self._began.pop(slot, now)
        if now - began >= HELD_UP_S:
            self._held_up_until = now + HELD_UP_S

    def held_up_s(self) -> float | None:
        """Seconds until a call may start, where calls have been waiting for longer than a moment; else None."""
        now = time.monotonic()
        oldest = min(self._began.values(), default=now)
        if now - oldest < HELD_UP_S and now >= self._held_up_until:
            return None
        return max(0.0, self._next_at - now)
