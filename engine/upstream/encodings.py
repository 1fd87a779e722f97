"""Learns which routes give no base64 vectors. Known to this process only.

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


class Encodings:
    """The encoding to request from each route. Belongs to one event loop."""

    def __init__(self) -> None:
        self._answered: set[tuple[str, str]] = set()  # in base64
        self._floats: set[tuple[str, str]] = set()
        self._attempts: dict[tuple[str, str], int] = {}
        self._faults: dict[tuple[str, str], _Faults] = {}

    def of(self, route: Route) -> Route:
        """The route with the encoding to request."""
        if not self._floats or route.encoding == "float" or _key(route) not in self._floats:
            return route
        return replace(route, encoding="float")

    def answered(self, route: Route) -> None:
        """Remember that the route answered in base64."""
        if route.encoding == "base64" and _key(route) not in self._answered:
            self._answered.add(_key(route))
            self._faults.pop(_key(route), None)

    def floats_after(self, error: UpstreamError, route: Route, batch: Batch) -> Route | None:
        """The route with floats, if the error may mean that it has no base64; else None."""
        if route.encoding != "base64":
            return None
        if isinstance(error, EncodingRefused):
            self.use_floats(route)
            return self.of(route)
        key = _key(route)
        if isinstance(error, UpstreamUnavailable):
            is_open = error.status is not None and key not in self._answered
            is_tried = is_open and self._faults.setdefault(key, _Faults()).may_be_encoding()
            return replace(route, encoding="float") if is_tried else None
        unexplained = isinstance(error, UpstreamRejected) and error.code == UpstreamRejected.code
        if not unexplained or len(batch.inputs) > 1 or key in self._answered or batch.options.provider_options:
            return None
        if self._attempts.get(key, 0) >= MAX_ATTEMPTS:
            return None
        self._attempts[key] = self._attempts.get(key, 0) + 1
        return replace(route, encoding="float")

    def floats_answered(self, route: Route, error: UpstreamError) -> None:
        """A batch that met `error` with base64 was answered with floats."""
        faults = self._faults.get(_key(route))
        if isinstance(error, UpstreamUnavailable) and faults is not None:
            faults.wins += 1
            if faults.wins < WINS:
                return
        self.use_floats(route)

    def use_floats(self, route: Route) -> None:
        """Request floats from the route from now on."""
        if _key(route) in self._floats:
            return
        self._floats.add(_key(route))
        log.warning(
            "provider %s gives no base64 vectors for the model %s: it is asked for floats from now on; "
            'set encoding = "float" in providers.%s to ask for them at once',
            route.provider,
            route.upstream_model,
            route.provider,
        )


def _key(route: Route) -> tuple[str, str]:
    return route.account.name, route.upstream_model
