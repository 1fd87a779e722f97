"""Which route next: by priority, then by weight, leaving out those that are unfit right now."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config.suggestions import did_you_mean
from engine.planning import packing
from engine.planning.learned_limits import LearnedLimits
from engine.routing import gateway_options
from engine.routing.control_calls import ControlCalls
from engine.routing.credential_probe import CredentialProbe
from engine.routing.gateway_options import FIELD
from engine.routing.health import RouteHealth
from engine.routing.outages import Outage, Outages, RouteKey, route_key
from engine.routing.own_refusals import OwnRefusals
from models.embedding import Alias, Batch, Limits, Route
from models.errors import InvalidInput, RouteDown, RouteQuarantined, UnknownAlias, UpstreamAuthFailed, UpstreamError

QUARANTINE_RETRY_S = 30.0


def narrowed(aliases: Mapping[str, Alias], alias: Alias, provider_options: Mapping[str, Any]) -> Alias:
    """The alias with the routes that the caller's `providerOptions.gateway` leaves, in the order it asks for.

    A provider is named by its account or by its kind. Raises InvalidInput or UnknownAlias that names the field.
    """
    given = provider_options.get("gateway")
    if not given:
        return alias
    asked = gateway_options.read(given)
    routes = list(alias.routes)
    known = {route_key(route) for route in routes}
    for name in asked.models:
        other = aliases.get(name)
        if other is None:
            raise UnknownAlias(
                f"The model `{name[:200]}` does not exist.{did_you_mean(name, aliases)} "
                f"GET /v1/models lists those that there are.",
                param=f"{FIELD}.models",
            )
        if other.space != alias.space or other.width != alias.width:
            raise InvalidInput(
                f"The model {name} cannot stand in for {alias.name}: its vectors live in another space. "
                f"Name models of the space {alias.space}; GET /v1/models shows it for each.",
                param=f"{FIELD}.models",
                code="space_mismatch",
            )
        lowest = max((route.priority for route in routes), default=0) + 1
        others = [route for route in other.routes if route_key(route) not in known]
        known.update(map(route_key, others))
        routes += [replace(route, priority=lowest + route.priority) for route in others]
    if asked.only:
        routes = [route for route in routes if _named(route, asked.only) is not None]
        if not routes:
            raise InvalidInput(
                f"None of the providers in '{FIELD}.only' serves the model {alias.name}. "
                f"Use one of {', '.join(sorted({route.provider for route in alias.routes}))}.",
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


@dataclass(slots=True)
class HangProbes:
    """The calls of ours beside calls that are late, on one route. Instants on the event loop's clock."""

    asked_at: float = -math.inf
    failed_at: float = -math.inf
    answered_at: float = -math.inf


class Router:
    """Which routes are fit, and what this process has learned of each. What is down, all processes know."""

    def __init__(self, outages: Outages | None = None) -> None:
        self.outages = outages if outages is not None else Outages()
        self.control_calls = ControlCalls()
        self.probes: Counter[RouteKey] = Counter()  # health probes of this process that are under way
        self.faults_in_a_row: Counter[RouteKey] = Counter()
        self.hang_probes: defaultdict[RouteKey, HangProbes] = defaultdict(HangProbes)
        self.first_calls = CredentialProbe()
        self.own_refusals = OwnRefusals()
        # Account, upstream model and space of routes that failed their drift check; `engine/routing/drift.py` keeps it.
        self.quarantined: frozenset[tuple[str, str, str]] = frozenset()
        self._health: dict[tuple[str, str], RouteHealth] = {}
        self._sizes: dict[tuple[str, str], LearnedLimits] = {}

    def candidates(self, alias: Alias) -> list[Route]:
        """Fit routes in the order to try them. Raises RouteDown or RouteQuarantined when there is none.

        All routes of an alias share one vector space, so any may stand in for any other.
        """
        if len(alias.routes) == 1 and not self.outages and not self.quarantined:
            return list(alias.routes)
        trusted = [route for route in alias.routes if (*route_key(route), alias.space) not in self.quarantined]
        if not trusted:
            raise RouteQuarantined(
                f"every provider of the model {alias.name} is quarantined: its vectors have changed. "
                "Use another model until the operator has looked (`embedmill doctor`).",
                retry_after_s=QUARANTINE_RETRY_S,
            )
        fit = [route for route in trusted if self.outages.of(route) is None]
        if not fit:
            raise self.down(alias)
        # Weighted shuffle within a priority: the classic key is random ** (1 / weight), largest first.
        return sorted(fit, key=lambda route: (route.priority, -(random.random() ** (1.0 / max(route.weight, 1)))))

    def outage_of(self, alias: Alias) -> Outage | None:
        """The outage that the alias waits for: that of its first route, when all of its routes are down."""
        if not self.outages:
            return None
        found = [
            self.outages.of(route)
            for route in sorted(alias.routes, key=lambda route: route.priority)
            if (*route_key(route), alias.space) not in self.quarantined
        ]
        return found[0] if found and all(outage is not None for outage in found) else None

    def down(self, alias: Alias) -> RouteDown:
        """The error of a call that finds all routes of the alias down."""
        found = [outage for route in alias.routes if (outage := self.outages.of(route)) is not None]
        first = min(found, key=lambda outage: outage.next_attempt)
        return RouteDown(first.cause.sentence(), retry_after_s=max(1.0, first.next_attempt_in_s))

    def report(self, route: Route, error: UpstreamError) -> None:
        """The route is down: `error` would have met any call."""
        if isinstance(error, UpstreamAuthFailed):
            self.first_calls.shut(route)
        self.outages.report(route, error)

    def answered(self, route: Route, faults: int) -> None:
        """The route answered well, after so many faults of the same call."""
        self.health(route).answered(faults)
        self.faults_in_a_row.pop(route_key(route), None)
        self.outages.answered(route)

    async def close(self) -> None:
        await self.control_calls.close()
        await self.outages.close()

    def health(self, route: Route) -> RouteHealth:
        identity = route_key(route)
        known = self._health.get(identity)
        if known is None:
            known = self._health[identity] = RouteHealth()
        return known

    def sizes(self, route: Route) -> LearnedLimits:
        identity = route_key(route)
        known = self._sizes.get(identity)
        if known is None:
            known = self._sizes[identity] = LearnedLimits()
        return known

    def per_byte(self, alias: Alias) -> float:
        """Tokens to reckon with for a byte of text, on whichever of the alias's routes it goes."""
        return max(self.sizes(route).per_byte for route in alias.routes)

    def learned_per_byte(self, alias: Alias) -> float | None:
        """Tokens a byte of text, as the answers to this process had it lately; None before there were enough."""
        learned = [known for route in alias.routes if (known := self.sizes(route).learned_per_byte) is not None]
        return max(learned) if len(learned) == len(alias.routes) else None

    def lesson(self, alias: Alias) -> Limits | None:
        """What calls may hold at the most since larger ones were refused; None: nothing was refused of late."""
        taught = [lesson for route in alias.routes if (lesson := self.sizes(route).lesson()) is not None]
        return taught[0] if len(taught) == 1 else packing.tightest(taught) if taught else None

    def answers(self, alias: Alias) -> int:
        """Good answers of the alias's routes so far, to whomever in this process."""
        return sum(self.health(route).answers for route in alias.routes)

    def by_chance(self, alias: Alias, faults: int) -> float:
        """How likely so many faults of one call are an accident: by the flakiest of the routes."""
        return max(self.health(route).by_chance(faults) for route in alias.routes)


def can_take(route: Route, batch: Batch) -> bool:
    return route.accepts_tokens or all(isinstance(item, str) for item in batch.inputs)
