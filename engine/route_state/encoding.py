"""Learns whether a route gives base64 vectors. Known to this process only.

A server without base64 refuses every call, often with an unknown message, or fails with a 5xx. So while a route has
never answered in base64, an input that it refuses alone is sent once more with floats requested: if that works, the
route gets float requests from then on. After 5xx, which may be temporary, more evidence is needed: several in a row,
and floats that work twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, replace

from models.embedding import Batch, Route
from models.errors import EncodingRefused, UpstreamError, UpstreamRejected, UpstreamUnavailable

log = logging.getLogger(__name__)

# Inputs that are sent again with floats before the encoding is held not to be the cause.
MAX_ATTEMPTS = 3
# 5xx in a row, of a route that has never answered in base64, before floats are tried.
FAULTS_IN_A_ROW = 3
# Pause between attempts that failed: doubled each time, up to the cap.
ATTEMPT_EVERY_S, ATTEMPT_EVERY_CAP_S = 5.0, 60.0
# Floats must work so often right after base64 failed. With 30 % random faults that happens in one of 250 starts.
WINS = 2


@dataclass(slots=True)
class _Faults:
    """Faults of base64 requests to a route that has never answered one."""

    in_a_row: int = 0
    wins: int = 0  # floats that worked right after base64 failed
    next_attempt: float = -math.inf  # on the event loop's clock
    pause_s: float = ATTEMPT_EVERY_S

    def may_be_encoding(self) -> bool:
        """Record a 5xx. True when floats should be tried now."""
        self.in_a_row += 1
        now = asyncio.get_running_loop().time()
        if self.in_a_row < FAULTS_IN_A_ROW or (not self.wins and now < self.next_attempt):
            return False
        self.next_attempt, self.pause_s = now + self.pause_s, min(ATTEMPT_EVERY_CAP_S, 2 * self.pause_s)
        return True


class RouteEncoding:
    """The encoding to request from one route. Belongs to one event loop."""

    __slots__ = ("_attempts", "_faults", "is_base64_proven", "uses_floats")

    def __init__(self) -> None:
        self.is_base64_proven = False  # by an answer
        self.uses_floats = False
        self._attempts = 0
        self._faults: _Faults | None = None

    def answered(self, route: Route) -> None:
        """Remember that the route answered in the encoding of `route`."""
        if route.encoding == "base64":
            self.is_base64_proven = True
            self._faults = None

    def floats_after(self, error: UpstreamError, route: Route, batch: Batch) -> Route | None:
        """The route with floats, if the error may mean that it has no base64; else None."""
        if route.encoding != "base64":
            return None
        if isinstance(error, EncodingRefused):
            self.use_floats(route)
            return with_floats(route)
        if isinstance(error, UpstreamUnavailable):
            if error.status is None or self.is_base64_proven:
                return None
            self._faults = self._faults or _Faults()
            return with_floats(route) if self._faults.may_be_encoding() else None
        unexplained = isinstance(error, UpstreamRejected) and error.code == UpstreamRejected.code
        if not unexplained or len(batch.inputs) > 1 or self.is_base64_proven or batch.options.provider_options:
            return None
        if self._attempts >= MAX_ATTEMPTS:
            return None
        self._attempts += 1
        return with_floats(route)

    def floats_answered(self, route: Route, error: UpstreamError) -> None:
        """A batch that met `error` with base64 was answered with floats."""
        if isinstance(error, UpstreamUnavailable) and self._faults is not None:
            self._faults.wins += 1
            if self._faults.wins < WINS:
                return
        self.use_floats(route)

    def use_floats(self, route: Route) -> None:
        """Request floats from now on. `route` is for the log."""
        if self.uses_floats:
            return
        self.uses_floats = True
        log.warning(
            "provider %s gives no base64 vectors for the model %s: it is asked for floats from now on; "
            'set encoding = "float" in providers.%s to ask for them at once',
            route.provider,
            route.upstream_model,
            route.provider,
        )


def with_floats(route: Route) -> Route:
    """The route with floats as the encoding to request."""
    return route if route.encoding == "float" else replace(route, encoding="float")
