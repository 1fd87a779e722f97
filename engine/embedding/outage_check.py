"""Is it the route or the call? Judges errors of calls, and makes the health probes of routes that are down.

A control call carries a text of ours and no option of any caller. What it meets as well, every caller would meet: the
route is down. What it does not meet is due to the inputs or options of the call that failed, and only its caller hears
of that: law 7 of the house, one tenant cannot hurt another.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from engine.cancellation import CancellationToken
from engine.ledger.billing import Spending, paid
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, MaxWait
from engine.planning import packing
from engine.routing.control_calls import control_batch
from engine.routing.outages import route_key
from engine.routing.router import Router, can_take
from engine.upstream.call import CallObserver, Upstream
from models.embedding import Alias, Batch, Call, Route
from models.errors import (
    DeadlineExceeded,
    Disposition,
    EmbeddingsUnsupported,
    EmbedmillError,
    UnsupportedParameter,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamRateLimited,
    UpstreamRejected,
)

CONTROL_TIMEOUT_S = 5.0
# So many faults in a row on one route, by any calls of this process: at 30 % random faults one in 15,000.
FAULTS_IN_A_ROW = 8
LONG_PROBE_EVERY = 4


class Run(Protocol):
    """What is needed of a run of embed()."""

    upstream: Upstream
    router: Router
    alias: Alias
    lane: str
    deadline: float
    calls: list[Call]
    stop: CancellationToken
    waits: CallWaits
    cooldown_wait_s: float
    tenant: str
    call_observer: CallObserver | None
    spending: Spending | None


R = TypeVar("R", bound=Run)
Embed = Callable[[R, Batch, Route], Awaitable[object]]
"""Embeds the batch on one route in one call, and keeps what came."""


async def control(
    run: Run, route: Route, *, timeout_s: float = CONTROL_TIMEOUT_S, max_wait: MaxWait = UNBOUNDED
) -> EmbedmillError | None:
    """None when the route answers a call of ours, with a text and options of ours; else the error of that."""
    return await run.router.control_calls.ask(route_key(route), lambda: _control(run, route, timeout_s, max_wait))


async def _control(run: Run, route: Route, timeout_s: float, max_wait: MaxWait) -> EmbedmillError | None:
    batch = control_batch(route.width)
    made: list[Call] = []
    deadline = time.monotonic() + min(timeout_s, route.account.timeout_s)
    try:
        with paid(run.spending, batch, route, made, is_ours=True):
            await run.upstream.embed(
                batch,
                route,
                deadline=deadline,
                calls=made,
                call_observer=run.call_observer,
                max_wait=max_wait,
                test="control_call",
            )
    except EmbedmillError as error:
        if isinstance(error, UpstreamError):
            error.account, error.upstream_model = route_key(route)
        return error
    finally:
        run.calls += made
    # Not `router.answered`: whether an input is to blame is judged by answers to callers alone.
    run.router.outages.answered(route)
    return None


async def judge(run: Run, batch: Batch, route: Route, error: UpstreamError) -> EmbedmillError | None:
    """What a failed call on a route comes to, after its retries; marks the route as down where it is.

    An error with disposition SPLIT is about the inputs: it is to be raised at once. All others leave the next route.
    None: the route is fit, and the call was not made: make it.
    """
    if isinstance(error, UpstreamRateLimited):
        return error
    if isinstance(error, EmbeddingsUnsupported) and len(run.alias.routes) == 1:
        return error  # each caller hears of it, in the one call that it costs
    if isinstance(error, UpstreamAuthFailed) and not error.sent:
        # The first call of another run was refused: perhaps by its caller's doing.
        if run.router.outages.of(route) is None and await control(run, route) is None:
            return None
        return error
    if not error.sent:
        run.router.report(route, error)
        return error
    if error.disposition is Disposition.RETRY and not error.route_fault:
        return error  # it may pass: `confirm` decides when the batch is given up
    name = batch.options.sent_to(route.account)
    if name is None and error.route_fault and _is_sure(run, batch, route):
        run.router.report(route, error)
        return error
    result = await control(run, route)
    if isinstance(result, UpstreamError) and not isinstance(result, UpstreamRateLimited):
        run.router.report(route, result)
        return result
    if result is not None:
        return error  # nobody knows: our own side had no time or quota for the control call
    if name is not None:
        return refused_options(name)
    is_of_width = batch.width != route.width and (error.route_fault or isinstance(error, UpstreamMisconfigured))
    if is_of_width and run.lane == "bulk":
        return _refused_width(batch, route, error)
    if not is_of_width:
        error.route_fault = False  # the route gives others what it should: what came is due to an input
    # A parameter that the provider does not have is what this caller asked for, and in no input.
    is_of_parameters = error.status in (400, 422) or is_of_width
    if isinstance(error, UpstreamAuthFailed) or (isinstance(error, UpstreamMisconfigured) and not is_of_parameters):
        return UpstreamRejected("the provider refused the input", status=error.status)
    return error


def _is_sure(run: Run, batch: Batch, route: Route) -> bool:
    """True where a reply that would repeat needs no control call to be the route's fault.

    One input alone may draw what no other does, a route that has answered well gives others what it should, and a width
    that only this caller asks for is no concern of others.
    """
    return len(batch.inputs) > 1 and batch.width == route.width and not run.router.health(route).answers


async def run_batch(run: R, batch: Batch, settle: Callable[[R, Batch], Awaitable[object]], embed: Embed[R]) -> None:
    """Settle a batch on routes that are not down, or that its probe finds fit. Outages that it meets are made known."""
    rest: Batch | None = batch
    if run.router.outages:
        rest = await probed(run, batch, embed)
    if rest is None:
        return
    try:
        await settle(run, rest)
    except UpstreamError as error:
        if run.lane == "bulk" and run.stop.reason is None:
            await confirm(run, error)
        raise


async def confirm(run: Run, error: UpstreamError) -> None:
    """After faults that may pass (5xx, timeouts, useless replies): the route is down where a control call fails too."""
    key = (error.account, error.upstream_model)
    route = next((each for each in run.alias.routes if route_key(each) == key), None)
    is_open_question = error.disposition is Disposition.RETRY and not isinstance(error, UpstreamRateLimited)
    if route is None or not is_open_question or run.router.outages.of(route) is not None:
        return
    if not error.sent:
        run.router.report(route, error)
        return
    result = await control(run, route)
    if isinstance(result, UpstreamError) and not isinstance(result, UpstreamRateLimited):
        run.router.report(route, result)


async def is_in_vain(run: Run, route: Route, error: UpstreamError) -> bool:
    """Note a fault that may pass. True when nothing gets through to the route, so that to try again would be in vain.

    Bulk calls only: there are many of them, and each interactive one has a caller who waits.
    """
    if run.lane != "bulk":
        return False
    faults = run.router.faults_in_a_row
    faults[route_key(route)] += 1
    if faults[route_key(route)] >= FAULTS_IN_A_ROW and run.stop.reason is None:
        del faults[route_key(route)]
        await confirm(run, error)
    return run.router.outages.of(route) is not None


async def probed(run: R, batch: Batch, embed: Embed[R]) -> Batch | None:
    """The batch once a route of its alias may be called; None when a health probe has settled all of it.

    Raises RouteDown while all routes are down: at once when no health probe is due, after the probe of this process
    when one is under way.
    """
    outages = run.router.outages
    until = run.deadline if run.lane == "bulk" else min(run.deadline, time.monotonic() + run.cooldown_wait_s)
    await outages.refresh()
    while True:
        down = [(route, outage) for route in run.alias.routes if (outage := outages.of(route)) is not None]
        for route, outage in down:
            if outage.next_attempt_in_s > 0 or not can_take(route, batch):
                continue
            run.router.probes[route_key(route)] += 1  # from now on the others wait for it
            try:
                if await outages.take_turn(route):
                    is_long = outage.failures % LONG_PROBE_EVERY == LONG_PROBE_EVERY - 1
                    return await _probe(run, batch, route, embed, is_long=is_long)
            finally:
                run.router.probes[route_key(route)] -= 1
        # Another process has made the probe, and its outcome is known by now.
        down = [(route, outage) for route in run.alias.routes if (outage := outages.of(route)) is not None]
        if len(down) < len(run.alias.routes) or run.stop.reason is not None:
            return batch
        under_way = [outages.of(route) for route, _ in down if run.router.probes[route_key(route)]]
        wait_s = min((outage.next_attempt_in_s for outage in under_way if outage is not None), default=0.0)
        if wait_s <= 0 or time.monotonic() + wait_s > until:
            raise run.router.down(run.alias)
        with contextlib.suppress(TimeoutError):
            async with run.stop.timeout(wait_s + 0.01):
                await outages.changed()


async def _probe(run: R, batch: Batch, route: Route, embed: Embed[R], *, is_long: bool) -> Batch | None:
    """Call a route that is down with one of the batch's inputs, and keep its vector. What is left of the batch."""
    position = random.randrange(len(batch.inputs))
    timeout_s = route.account.timeout_s if is_long else min(CONTROL_TIMEOUT_S, route.account.timeout_s)
    bounded = replace(run, deadline=min(run.deadline, time.monotonic() + timeout_s))  # type: ignore[type-var]
    try:
        await embed(bounded, packing.chosen(batch, [position]), route)
    except UpstreamError as error:
        if error.disposition is Disposition.SPLIT or (isinstance(error, UpstreamRateLimited) and error.sent):
            run.router.outages.answered(route)
            return batch  # it answers, and has something to say about the input
        failure: EmbedmillError | None = error
        if error.sent and (error.disposition is Disposition.RETRY or batch.options.sent_to(route.account) is not None):
            failure = await control(run, route)
        if failure is None:
            return batch
        run.router.outages.probe_failed(route, failure)
    except DeadlineExceeded as error:  # no place, or no time: nothing was learned
        run.router.outages.probe_failed(route, error)
    else:
        run.router.outages.answered(route)
        others = [each for each in range(len(batch.inputs)) if each != position]
        return packing.chosen(batch, others) if others else None
    if any(run.router.outages.of(each) is None for each in run.alias.routes):
        return batch
    raise run.router.down(run.alias)


def refused_options(name: str) -> UnsupportedParameter:
    """`name`: the field of the request."""
    return UnsupportedParameter(
        f"The provider refused a parameter of the call; it was sent what is under '{name}'. "
        "Correct that, or leave it out.",
        param=name,
        code="provider_options_refused",
    )


def _refused_width(batch: Batch, route: Route, error: UpstreamError) -> UnsupportedParameter:
    """A width that only this job asks for: final for it, since each claim would pay for the same replies again."""
    asked = f"The provider {route.provider} gives no vectors of {batch.width} numbers for this model"
    advice = error.advice[:1].upper() + error.advice[1:]
    return UnsupportedParameter(f"{asked}: {error.message}. {advice}.", param="dimensions", code="dimensions_refused")
