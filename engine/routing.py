"""Which route next: by priority, then by weight, leaving out those that are unfit right now."""

from __future__ import annotations

import random
import time

from models.embedding import Alias, Batch, Route
from models.errors import NoRoute

COOL_DOWN_S = 20.0


class Router:
    """Remembers, in this process, which routes failed in a way that another call would not mend at once."""

    def __init__(self) -> None:
        self._unfit_until: dict[tuple[str, str], float] = {}

    def candidates(self, alias: Alias) -> list[Route]:
        """Fit routes in the order to try them. Raises NoRoute when there is none.

        All routes of an alias share one vector space, so any may stand in for any other.
        """
        now = time.monotonic()
        if len(alias.routes) == 1 and not self._unfit_until:
            return list(alias.routes)
        fit = [route for route in alias.routes if self._unfit_until.get(_identity(route), 0.0) <= now]
        if not fit:
            raise NoRoute(
                f"no provider of the model {alias.name} can be used right now",
                retry_after_s=max(1.0, min(self._unfit_until[_identity(route)] for route in alias.routes) - now),
            )
        # Weighted shuffle within a priority: the classic key is random ** (1 / weight), largest first.
        return sorted(fit, key=lambda route: (route.priority, -(random.random() ** (1.0 / max(route.weight, 1)))))

    def cool_down(self, route: Route, seconds: float = COOL_DOWN_S) -> None:
        """Leave the route out for a while: its credential, model or path was refused."""
        self._unfit_until[_identity(route)] = time.monotonic() + seconds

    def recovered(self, route: Route) -> None:
        if self._unfit_until:
            self._unfit_until.pop(_identity(route), None)


def can_take(route: Route, batch: Batch) -> bool:
    return route.accepts_tokens or all(isinstance(item, str) for item in batch.inputs)


def _identity(route: Route) -> tuple[str, str]:
    return route.account.name, route.upstream_model
