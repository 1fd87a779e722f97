"""How long, and how often, a server that is busy or away is asked again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import httpx

BUSY_STATUSES = frozenset({429, 502, 503, 504})
# How long a server may be away before a command gives up. `up` restarts a dead API in a few seconds, but an upload that
# died with it holds its idempotency key for a lease of 60.
PATIENCE_S = 90.0
# The same for a server that never answered yet: a wrong address rather than a restart.
FIRST_PATIENCE_S = 4.0
LONGEST_PAUSE_S = 30.0
# What breaks off sooner than that was nothing begun: the server is away, and what stands before it takes connections.
BEGUN_AFTER_S = 1.0


class Patience:
    """Repeats requests to one server, with pauses that are polite to it."""

    def __init__(
        self,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.sleep = sleep
        self.clock = clock
        self._patience_s = patience_s
        self._current_s = min(FIRST_PATIENCE_S, patience_s)

    def answer(
        self,
        send: Callable[[], httpx.Response],
        is_busy: Callable[[httpx.Response], bool],
        tries: int | None = None,
    ) -> httpx.Response:
        """Send until the answer is not "busy". When the server was busy or away for too long, or has broken off `tries`
        times halfway, the last answer is returned or the last httpx.TransportError raised: a broken upload costs
        something, knocking at a closed door does not.
        """
        attempt = 0
        failing_since: float | None = None
        while True:
            attempt += 1
            reply, problem, began = None, None, self.clock()
            try:
                reply = send()
            except httpx.TransportError as error:
                problem = error
            if reply is not None:
                self._current_s = self._patience_s
                if not is_busy(reply):
                    return reply
            begun = not isinstance(problem, httpx.ConnectError) and self.clock() - began >= BEGUN_AFTER_S
            if tries is not None and problem is not None and begun:
                tries -= 1
                failing_since = None
                gives_up = tries == 0
            else:
                now = self.clock()
                failing_since = now if failing_since is None else failing_since
                gives_up = now - failing_since >= self._current_s
            if gives_up and reply is not None:
                return reply
            if gives_up and problem is not None:
                raise problem
            self.sleep(pause_s(attempt, reply))


def is_busy(reply: httpx.Response) -> bool:
    """True for an answer that asks to come back later."""
    return reply.status_code in BUSY_STATUSES


def pause_s(attempt: int, reply: httpx.Response | None) -> float:
    """Seconds before the next try: Retry-After where the server sent one, else a jittered doubling."""
    after = reply.headers.get("retry-after", "") if reply is not None else ""
    try:
        return min(max(float(after), 0.0), LONGEST_PAUSE_S)
    except ValueError:  # absent, or a date
        return min(0.1 * float(2 ** min(attempt, 10)), 5.0) * random.uniform(0.5, 1.0)
