"""Which route next: by priority, then by weight, leaving out those that are unfit right now."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from engine import planning
from engine.first_calls import FirstCalls
from engine.health import RouteHealth
from engine.sizes import RouteSizes
from models.embedding import Alias, Batch, Limits, Route
from models.errors import InvalidInput, NoRoute, RouteQuarantined, UnknownAlias

COOL_DOWN_S = 20.0
# After a credential was refused once, twice, … in a row: somebody must give us another, and that takes people a while.
REFUSED_S = (20.0, 60.0, 300.0, 600.0)
QUARANTINE_RETRY_S = 30.0
FIELD = "providerOptions.gateway"


class GatewayOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a caller may say about routing, under `providerOptions.gateway`."""

    order: list[str] = []  # providers to try first, in this order
    only: list[str] = []  # providers that may be used at all
    models: list[str] = []  # other aliases of the same space that may stand in
    tags: list[str] = []
    user: str | None = None
    cache: bool | None = None


def narrowed(aliases: Mapping[str, Alias], alias: Alias, provider_options: Mapping[str, Any]) -> Alias:
    """The alias with the routes that the caller's `providerOptions.gateway` leaves, in the order it asks for.

    A provider is named by its account or by its kind. Raises InvalidInput or UnknownAlias that names the field.
    """
    given = provider_options.get("gateway")
    if not given:
        return alias
    try:
        asked = msgspec.convert(given, GatewayOptions)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid '{FIELD}': {error}.", param=FIELD, code="invalid_value") from error
    routes = list(alias.routes)
    for name in asked.models:
        other = aliases.get(name)
        if other is None:
            raise UnknownAlias(f"The model `{name[:200]}` does not exist.", param=f"{FIELD}.models")
        if other.space != alias.space or other.width != alias.width:
            raise InvalidInput(
                f"The model {name} cannot stand in for {alias.name}: its vectors live in another space.",
                param=f"{FIELD}.models",
                code="space_mismatch",
            )
        lowest = max((route.priority for route in routes), default=0) + 1
        routes += [replace(route, priority=lowest + route.priority) for route in other.routes]
    if asked.only:
        routes = [route for route in routes if _named(route, asked.only) is not None]
        if not routes:
            raise InvalidInput(
                f"None of the providers in '{FIELD}.only' serves the model {alias.name}.",
                param=f"{FIELD}.only",
                code="invalid_value",
            )
    if asked.order:
        first = min(route.priority for route in routes) - len(asked.order)
        places = [(route, _named(route, asked.order)) for route in routes]
        routes = [route if place is None else replace(route, priority=first + place) for route, place in places]
    routes.sort(key=lambda route: route.priority)
    return replace(alias, routes=tuple(routes))


def _named(route: Route, names: list[str]) -> int | None:
    """Where the route's provider stands among the names."""
    return next((i for i, name in enumerate(names) if name in (route.account.name, route.account.kind)), None)


class Router:
    """Remembers, in this process, which routes failed in a way that another call would not mend at once."""

    def __init__(self) -> None:
        self._unfit_until: dict[tuple[str, str], float] = {}
        self._refusals: dict[tuple[str, str], int] = {}
        self.first_calls = FirstCalls()
        # Account, upstream model and space of routes whose canary has changed; `engine/canary.py` keeps it.
        self.quarantined: frozenset[tuple[str, str, str]] = frozenset()
        self._health: dict[tuple[str, str], RouteHealth] = {}
        self._sizes: dict[tuple[str, str], RouteSizes] = {}

    def candidates(self, alias: Alias) -> list[Route]:
        """Fit routes in the order to try them. Raises NoRoute when there is none.

        All routes of an alias share one vector space, so any may stand in for any other.
        """
        now = time.monotonic()
        if len(alias.routes) == 1 and not self._unfit_until and not self.quarantined:
            return list(alias.routes)
        trusted = [route for route in alias.routes if (*_identity(route), alias.space) not in self.quarantined]
        if not trusted:
            raise RouteQuarantined(
                f"every provider of the model {alias.name} is quarantined: its vectors have changed",
                retry_after_s=QUARANTINE_RETRY_S,
            )
        fit = [route for route in trusted if self._unfit_until.get(_identity(route), 0.0) <= now]
        if not fit:
            raise NoRoute(
                f"no provider of the model {alias.name} can be used right now",
                retry_after_s=max(1.0, min(self._unfit_until[_identity(route)] for route in trusted) - now),
            )
        # Weighted shuffle within a priority: the classic key is random ** (1 / weight), largest first.
        return sorted(fit, key=lambda route: (route.priority, -(random.random() ** (1.0 / max(route.weight, 1)))))

    def cool_down(self, route: Route, seconds: float = COOL_DOWN_S) -> None:
        """Leave the route out for a while: its model or path was refused."""
        self._unfit_until[_identity(route)] = time.monotonic() + seconds

    def refused(self, route: Route) -> None:
        """Leave the route out, for longer each time in a row: its credential was refused."""
        self.first_calls.shut(route)
        identity = _identity(route)
        if self._unfit_until.get(identity, 0.0) > time.monotonic():
            return  # told by a call that had started before
        before = self._refusals.get(identity, 0)
        self._refusals[identity] = before + 1
        self.cool_down(route, REFUSED_S[min(before, len(REFUSED_S) - 1)])

    def answered(self, route: Route, faults: int) -> None:
        """The route answered well, after so many faults of the same call."""
        self.health(route).answered(faults)
        if self._unfit_until:
            self._unfit_until.pop(_identity(route), None)
        if self._refusals:
            self._refusals.pop(_identity(route), None)

    def health(self, route: Route) -> RouteHealth:
        identity = _identity(route)
        known = self._health.get(identity)
        if known is None:
            known = self._health[identity] = RouteHealth()
        return known

    def sizes(self, route: Route) -> RouteSizes:
        identity = _identity(route)
        known = self._sizes.get(identity)
        if known is None:
            known = self._sizes[identity] = RouteSizes()
        return known

    def per_byte(self, alias: Alias) -> float:
        """Tokens to reckon with for a byte of text, on whichever of the alias's routes it goes."""
        return max(self.sizes(route).per_byte for route in alias.routes)

    def lesson(self, alias: Alias) -> Limits | None:
        """What calls may hold at the most since larger ones were refused; None: nothing was refused of late."""
        taught = [lesson for route in alias.routes if (lesson := self.sizes(route).lesson()) is not None]
        return taught[0] if len(taught) == 1 else planning.tightest(taught) if taught else None

    def answers(self, alias: Alias) -> int:
        """Good answers of the alias's routes so far, to whomever in this process."""
        return sum(self.health(route).answers for route in alias.routes)

    def acquit(self, alias: Alias, faults: int) -> None:
        """So many faults of the alias's routes were no input's doing."""
        for route in alias.routes:
            self.health(route).passed(faults)

    def by_chance(self, alias: Alias, faults: int) -> float:
        """How likely so many faults of one call are an accident: by the flakiest of the routes."""
        return max(self.health(route).by_chance(faults) for route in alias.routes)


def can_take(route: Route, batch: Batch) -> bool:
    return route.accepts_tokens or all(isinstance(item, str) for item in batch.inputs)


def _identity(route: Route) -> tuple[str, str]:
    return route.account.name, route.upstream_model
