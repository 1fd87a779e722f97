"""Hedging: an interactive call that takes unusually long is made on a second route too, and the first answer counts.

Off unless the model says `hedge = true`. Both calls are billed where the provider bills them: the one whose answer is
not used is in the ledger as wasted where it was answered, and as ambiguous where it was cut off.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

from engine.ledger.call_cost import with_cost
from engine.limiter.max_wait import WITH_ALTERNATIVE, MaxWait
from engine.observability.route_metrics import HEDGED_CALLS
from engine.observability.telemetry import WASTED_TOKENS
from engine.route_state.state import RouteState
from engine.routing.router import Router
from engine.upstream.call import Embedded
from models.embedding import Alias, Batch, Call, Route
from models.errors import EmbedmillError
from models.usage import UsageKind

HEDGE_LOST = "hedge_lost"  # the code of a call whose answer came second
HEDGE_SHARE = 0.95  # of a route's calls are answered before a second route is called

Answer = tuple[Embedded, Route, RouteState]


class Tried(NamedTuple):
    """What a route gave: its reply, or its error."""

    reply: Embedded | None
    error: EmbedmillError | None


class Run(Protocol):
    """What is needed of a run."""

    router: Router
    alias: Alias
    calls: list[Call]

    @property
    def cancel_reason(self) -> EmbedmillError | None:
        """The error that cancelled the run."""


TryRoute = Callable[[Route, RouteState, MaxWait, bool], Coroutine[Any, Any, Tried]]
"""Tries a route; the last argument: only once."""


@dataclass(slots=True)
class Raced:
    """The answer, where there is one; else the errors of the routes that need no further try, by position."""

    answer: Answer | None = None
    errors: dict[int, EmbedmillError] = field(default_factory=dict)


NOT_RACED = Raced()


async def race(run: Run, batch: Batch, routes: Sequence[Route], try_route: TryRoute) -> Raced:
    """Try the first route and, once it takes unusually long, the second as well. The other call is cancelled.

    Nothing is tried where it is not known what is usual. Raises what `try_route` raises for the first route.
    """
    states = [run.router.state_of(route) for route in routes[:2]]
    budget = run.router.hedge_budget_of(run.alias)
    budget.add_call()
    began = time.monotonic()
    delay_s = states[0].recent_calls.usual_latency_s(began, HEDGE_SHARE)
    if delay_s is None:
        return Raced()
    tasks = [asyncio.create_task(try_route(routes[0], states[0], WITH_ALTERNATIVE, False))]
    winner: int | None = None
    try:
        await asyncio.wait(tasks, timeout=delay_s)
        if not tasks[0].done() and run.cancel_reason is None and budget.take():
            tasks.append(asyncio.create_task(try_route(routes[1], states[1], WITH_ALTERNATIVE, True)))
        winner, errors = await _first_answer(tasks)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for position, result in enumerate(ended):
            if position != winner and isinstance(result, Tried) and result.reply is not None:
                _waste(run, batch, routes[position], result.reply)
        if isinstance(ended[0], asyncio.CancelledError) and winner == 1:
            # Left out, the slowest calls would make the next ones look usual sooner and sooner.
            states[0].recent_calls.took_at_least(time.monotonic(), time.monotonic() - began)
    if len(tasks) > 1:
        HEDGED_CALLS.labels(*routes[1].key, "none" if winner is None else ("lost", "won")[winner]).inc()
    if winner is None:
        return Raced(errors=errors)
    reply = tasks[winner].result().reply
    assert reply is not None
    return Raced((reply, routes[winner], states[winner]))


async def _first_answer(tasks: Sequence[asyncio.Task[Tried]]) -> tuple[int | None, dict[int, EmbedmillError]]:
    """The position of the first task with a reply, else the errors of all. Raises what the first task raises."""
    errors: dict[int, EmbedmillError] = {}
    waiting = set(tasks)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for position, task in enumerate(tasks):
            if task not in done:
                continue
            try:
                reply, error = task.result()
            except EmbedmillError:
                if position == 0:
                    raise
                continue  # of the second route nothing is taken for certain: it may be tried in its turn
            if reply is not None:
                return position, errors
            if error is not None:
                errors[position] = error
    return None, errors


def _waste(run: Run, batch: Batch, route: Route, reply: Embedded) -> None:
    """Mark the latest answered call of the route as wasted: its vectors are not used, but are billed."""
    for at in range(len(run.calls) - 1, -1, -1):
        call = run.calls[at]
        is_its = call.success and not call.wasted and (call.provider, call.upstream_model) == route.key
        if is_its and call.inputs == len(batch.inputs):
            wasted = with_cost(replace(call, error=HEDGE_LOST), UsageKind.WASTED, batch, route, reply.tokens)
            run.calls[at] = wasted
            WASTED_TOKENS.labels(*route.key, HEDGE_LOST).inc(wasted.tokens)
            return
