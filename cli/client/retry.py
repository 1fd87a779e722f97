"""The retry policy for a server that is busy or unreachable."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import httpx

BUSY_STATUSES = frozenset({429, 502, 503, 504})
# How long a server may be away before a command gives up. `up` restarts a dead API in a few seconds, but an upload that
# died with it holds its idempotency key for a lease of 60.
MAX_WAIT_S = 90.0
# The same before the first answer: a wrong address is likelier than a restart.
FIRST_CONTACT_WAIT_S = 4.0
MAX_PAUSE_S = 30.0
# A failure before this time counts as unreachable: a proxy accepts connections while the server behind it is down.
STARTED_AFTER_S = 1.0


class RetryPolicy:
    """Repeats requests to one server, with Retry-After or jittered exponential pauses between them."""

    def __init__(
        self,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self.sleep = sleep
        self.clock = clock
        self._max_wait_s = max_wait_s
        self._current_wait_s = min(FIRST_CONTACT_WAIT_S, max_wait_s)

    def send_until_answered(
        self,
        send: Callable[[], httpx.Response],
        is_busy: Callable[[httpx.Response], bool],
        failures_allowed: int | None = None,
    ) -> httpx.Response:
        """Send until the reply is not "busy". Returns the last reply, or raises the last httpx.TransportError.

        Gives up when the server was busy or unreachable for too long, or when the connection broke during the request
        `failures_allowed` times: a broken upload has a cost, a refused connection has none.
        """
        attempt = 0
        failing_since: float | None = None
        while True:
            attempt += 1
            reply, failure, started_at = None, None, self.clock()
            try:
                reply = send()
            except httpx.TransportError as error:
                failure = error
            if reply is not None:
                self._current_wait_s = self._max_wait_s
                if not is_busy(reply):
                    return reply
            was_started = not isinstance(failure, httpx.ConnectError) and self.clock() - started_at >= STARTED_AFTER_S
            if failures_allowed is not None and failure is not None and was_started:
                failures_allowed -= 1
                failing_since = None
                is_over = failures_allowed == 0
            else:
                now = self.clock()
                failing_since = now if failing_since is None else failing_since
                is_over = now - failing_since >= self._current_wait_s
            if is_over and reply is not None:
                return reply
            if is_over and failure is not None:
                raise failure
            self.sleep(pause_s(attempt, reply))


def is_busy(reply: httpx.Response) -> bool:
    """True for an answer that asks to come back later."""
    return reply.status_code in BUSY_STATUSES


def pause_s(attempt: int, reply: httpx.Response | None) -> float:
    """Seconds before the next try: Retry-After where the server sent one, else a jittered doubling."""
    after = reply.headers.get("retry-after", "") if reply is not None else ""
    try:
        return min(max(float(after), 0.0), MAX_PAUSE_S)
    except ValueError:  # absent, or a date
        return min(0.1 * float(2 ** min(attempt, 10)), 5.0) * random.uniform(0.5, 1.0)
