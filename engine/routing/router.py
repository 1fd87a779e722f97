"""Chooses the next route: by priority, then by weight, without those that are down or quarantined."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.config.suggestions import did_you_mean
from engine.limiter.registry import LimiterRegistry
from engine.planning import packing
from engine.planning.templates import takes_token_arrays
from engine.route_state.call_size_limits import UNLIMITED
from engine.route_state.state import RouteState
from engine.routing import gateway_options
from engine.routing.gateway_options import FIELD
from engine.routing.hedge_budget import HedgeBudget
from engine.routing.outages import Outage, Outages
from engine.routing.strategies import SORTS, ordered
from models.embedding import Alias, Batch, Limits, Route, RouteKey
from models.errors import InvalidInput, RouteDown, RouteQuarantined, UnknownAlias, UpstreamAuthFailed, UpstreamError

QUARANTINE_RETRY_S = 30.0
DRIFTED = "its answer to the drift probe has changed: `embedmill doctor` tells more"
UNVERIFIED_RETRY_S = 2.0  # a check takes two short calls

ConfiguredRoute = tuple[str, str, str]
"""Model of the configuration, account and upstream model."""


def apply_gateway_options(aliases: Mapping[str, Alias], alias: Alias, provider_options: Mapping[str, Any]) -> Alias:
    """The alias with the routes that the caller's `providerOptions.gateway` leaves, in the order it requests.

    A provider is named by its account or by its kind. Raises InvalidInput or UnknownAlias that names the field.
    """
    section = provider_options.get("gateway")
    if not section:
        return alias
    options = gateway_options.read(section)
    routes = _with_other_models(aliases, alias, options.models)
    if options.only:
        routes = [route for route in routes if _rank_in(options.only, route) is not None]
        if not routes:
            raise InvalidInput(
                f"None of the providers in '{FIELD}.only' serves the model {alias.name}. "
                f"Use one of {', '.join(sorted({route.provider for route in alias.routes}))}.",
                param=f"{FIELD}.only",
                code="invalid_value",
            )
    if options.order:
        first = min(route.priority for route in routes) - len(options.order)
        ranks = [(route, _rank_in(options.order, route)) for route in routes]
        routes = [route if rank is None else replace(route, priority=first + rank) for route, rank in ranks]
    routes.sort(key=lambda route: route.priority)
    strategy = alias.strategy if options.sort is None else SORTS[options.sort]
    return replace(alias, routes=tuple(routes), strategy=strategy)


def _with_other_models(aliases: Mapping[str, Alias], alias: Alias, models: Sequence[str]) -> list[Route]:
    """The routes of the alias and, at lower priority, of the other models. Raises InvalidInput or UnknownAlias."""
    routes = list(alias.routes)
    keys = {route.key for route in routes}
    for name in models:
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
        added = [route for route in other.routes if route.key not in keys]
        keys.update(route.key for route in added)
        routes += [replace(route, priority=lowest + route.priority) for route in added]
    return routes


def _rank_in(names: list[str], route: Route) -> int | None:
    """The position of the route's provider among the names."""
    account = route.account
    return next((i for i, name in enumerate(names) if name in (account.name, account.section, account.kind)), None)


class Router:
    """Which routes are fit, and the state of each in this process. Outages are known to all processes."""

    def __init__(self, limiters: LimiterRegistry | None = None, outages: Outages | None = None) -> None:
        self.outages = outages if outages is not None else Outages()
        # Account, upstream model and space of routes that failed their drift check; kept by `engine/routing/drift.py`.
        self.quarantined: frozenset[tuple[str, str, str]] = frozenset()
        # Routes that nothing is sent to, with the reason, since it is not known that they give the vectors of their
        # model's first route; kept by `engine/routing/space_checks.py`.
        self.unverified: Mapping[ConfiguredRoute, str] = {}
        self._limiters = limiters if limiters is not None else LimiterRegistry()
        self._states: dict[RouteKey, RouteState] = {}
        self._hedge_budgets: dict[str, HedgeBudget] = {}

    def unused_routes(self) -> dict[str, str]:
        """Why nothing is sent to a route, by its account and upstream model: quarantined, or not verified yet."""
        found = {f"{account} {model}": DRIFTED for account, model, _ in self.quarantined}
        return found | {f"{account} {model}": reason for (_, account, model), reason in self.unverified.items()}

    def state_of(self, route: Route) -> RouteState:
        """The state of the route's account and upstream model."""
        key = route.key
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = RouteState(route.account, route.upstream_model, self._limiters)
        return state

    def hedge_budget_of(self, alias: Alias) -> HedgeBudget:
        """The budget of hedged calls of the model, in this process."""
        return self._hedge_budgets.setdefault(alias.name, HedgeBudget())

    def candidates(self, alias: Alias, key: str = "") -> list[Route]:
        """Fit routes in the order to try them; `key`: the caller. Raises RouteDown or RouteQuarantined.

        All routes of an alias share one vector space, so any may stand in for any other.
        """
        if len(alias.routes) == 1 and not self.outages.active and not self.quarantined and not self.unverified:
            return list(alias.routes)
        trusted = self.trusted(alias)
        if not trusted:
            raise self._untrusted_error(alias)
        fit = [route for route in trusted if self.outages.of(route) is None]
        if not fit:
            raise self.down_error(alias)
        return ordered(alias.strategy, fit, self.state_of, key)

    def trusted(self, alias: Alias) -> list[Route]:
        """The routes whose vectors are known to be of the alias's space, up or down."""
        if not self.quarantined and not self.unverified:
            return list(alias.routes)
        return [
            route
            for route in alias.routes
            if (*route.key, alias.space) not in self.quarantined and self.unverified_reason(route) is None
        ]

    def unverified_reason(self, route: Route) -> str | None:
        """Why the route is not known to be of its model's space; None: it is."""
        return self.unverified.get((route.alias, *route.key)) if self.unverified else None

    def _untrusted_error(self, alias: Alias) -> RouteQuarantined:
        """The error for a call that finds no route whose vectors can be trusted."""
        for route in alias.routes:
            reason = self.unverified_reason(route)
            if reason is not None and (*route.key, alias.space) not in self.quarantined:
                return RouteQuarantined(
                    f"no provider of the model {alias.name} can be used: of account {route.provider}, {reason}.",
                    retry_after_s=UNVERIFIED_RETRY_S,
                )
        return RouteQuarantined(
            f"every provider of the model {alias.name} is quarantined: its vectors have changed. "
            "Use another model until the operator has looked (`embedmill doctor`).",
            retry_after_s=QUARANTINE_RETRY_S,
        )

    def outage_of(self, alias: Alias) -> Outage | None:
        """The outage of the alias's first route, when all of its trusted routes are down; else None."""
        if not self.outages.active:
            return None
        found = [self.outages.of(route) for route in sorted(self.trusted(alias), key=lambda route: route.priority)]
        return found[0] if found and all(outage is not None for outage in found) else None

    def down_error(self, alias: Alias) -> RouteDown:
        """The error for a call that finds all trusted routes of the alias down; it names those that are not trusted."""
        down = [route for route in alias.routes if self.outages.of(route) is not None]
        trusted = [route for route in self.trusted(alias) if route in down] or down
        found = [outage for route in trusted if (outage := self.outages.of(route)) is not None]
        first = min(found, key=lambda outage: outage.next_attempt)
        reasons = [
            f" Account {route.provider} does not stand in: {reason}."
            for route in alias.routes
            if (reason := self.unverified_reason(route)) is not None
        ]
        return RouteDown(first.cause.sentence() + "".join(reasons), retry_after_s=max(1.0, first.next_attempt_in_s))

    def report(self, route: Route, error: UpstreamError) -> None:
        """Mark the route as down: any call would meet `error`."""
        if isinstance(error, UpstreamAuthFailed):
            self.state_of(route).credential_probe.is_verified = False
        self.outages.report(route, error)

    def record_success(self, route: Route, state: RouteState, faults: int) -> None:
        """A call to the route succeeded, after so many faults of the same call."""
        state.statistics.record_success(faults)
        state.faults_in_a_row = 0
        if self.outages.active:
            self.outages.resolve(route)

    async def close(self) -> None:
        """Cancel control calls, and write the outages that are not written yet."""
        await asyncio.gather(*(state.control_call.close() for state in self._states.values()))
        await self.outages.close()

    def tokens_per_byte(self, alias: Alias) -> float:
        """Estimated tokens per byte of text, on the safe side for each of the alias's routes."""
        return max([self.state_of(route).estimator.tokens_per_byte for route in alias.routes])

    def mean_tokens_per_byte(self, alias: Alias) -> float | None:
        """Mean tokens per byte of text in recent replies; None before there are enough for each route."""
        ratios = [self.state_of(route).estimator.mean_tokens_per_byte for route in alias.routes]
        known = [ratio for ratio in ratios if ratio is not None]
        return max(known) if len(known) == len(ratios) else None

    def learned_limits(self, alias: Alias, *, is_bulk: bool) -> Limits | None:
        """The limits of calls, learned from refusals of larger ones, and for bulk from quotas; None: there are none.

        An interactive call is not split for a quota: one large call waits less than many small ones.
        """
        learned: list[Limits] = []
        for route in alias.routes:
            state = self.state_of(route)
            if state.call_size_limits.has_any and (limits := state.call_size_limits.current()) is not None:
                learned.append(limits)
            if is_bulk and state.limiter.max_learned_call_tokens is not None:
                learned.append(replace(UNLIMITED, tokens_per_call=state.limiter.max_learned_call_tokens))
        return packing.min_limits(learned) if learned else None

    def success_count(self, alias: Alias) -> int:
        """Successes of the alias's routes so far, of all callers of this process."""
        return sum(self.state_of(route).statistics.successes for route in alias.routes)

    def flake_probability(self, alias: Alias, faults: int) -> float:
        """The probability that so many faults of one call are flakes, on the flakiest of the routes."""
        return max(self.state_of(route).statistics.flake_probability(faults) for route in alias.routes)


def accepts(route: Route, batch: Batch) -> bool:
    """True when the route takes inputs of these types: texts, or token arrays too."""
    return takes_token_arrays(route, batch.options.input_type) or all(isinstance(item, str) for item in batch.inputs)
