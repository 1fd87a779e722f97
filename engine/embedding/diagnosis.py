"""Diagnoses failed calls: is the route down, or is the call at fault? Makes the health probes of routes that are down.

A control call carries a text of ours and no option of any caller. If it meets the same error, every caller would: the
route is down. If it does not, the cause is in the inputs or options of the failed call, and only its caller learns of
the error: one tenant cannot affect another.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from engine.cancellation import CancellationToken
from engine.ledger.call_cost import Spending, paid
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, MaxWait
from engine.planning import packing
from engine.route_state.control_call import control_batch
from engine.route_state.state import RouteState
from engine.routing.health_probes import HealthProbes, probe_timeout_s
from engine.routing.outages import MAX_AGE_TO_REFUSE_S
from engine.routing.router import Router, accepts
from engine.upstream.call import CallContext, CallObserver, Upstream
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
# So many faults in a row on one route, of all calls of this process: at 30 % random faults one in 15,000.
FAULTS_IN_A_ROW = 8


class Run(Protocol):
    """What a diagnosis needs of a run of embed()."""

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
    health_probes: HealthProbes | None


R = TypeVar("R", bound=Run)
EmbedOnRoute = Callable[[R, Batch, Route], Awaitable[object]]
"""Embeds the batch on one route in one call, and hands its outcome to the run."""


async def control_call(
    run: Run, route: Route, *, timeout_s: float = CONTROL_TIMEOUT_S, max_wait: MaxWait = UNBOUNDED
) -> EmbedmillError | None:
    """Make a control call, or share the result of a recent one. Returns its error; None when the route answers."""
    state = run.router.state_of(route)
    return await state.control_call.share(lambda: _make_control_call(run, route, state, timeout_s, max_wait))


async def _make_control_call(
    run: Run, route: Route, state: RouteState, timeout_s: float, max_wait: MaxWait
) -> EmbedmillError | None:
    batch = control_batch(route.width)
    deadline = time.monotonic() + min(timeout_s, route.account.timeout_s)
    context = CallContext(state, deadline, [], run.call_observer, max_wait=max_wait, purpose="control_call")
    try:
        with paid(run.spending, batch, route, context.calls, is_control=True):
            await run.upstream.embed(batch, route, context)
    except EmbedmillError as error:
        if isinstance(error, UpstreamError):
            error.account, error.upstream_model = route.key
        return error
    finally:
        run.calls += context.calls
    # Not `router.record_success`: only calls with inputs of callers are evidence about inputs.
    run.router.outages.resolve(route)
    return None


async def diagnose(run: Run, batch: Batch, route: Route, error: UpstreamError) -> EmbedmillError | None:
    """The error that a failed call amounts to, after its retries; marks the route as down where it is.

    An error with disposition SPLIT is about the inputs, and is to be raised at once. After any other the next route is
    tried. None: the route is fit, and the call was not made: make it.
    """
    if isinstance(error, UpstreamRateLimited):
        return error
    if isinstance(error, EmbeddingsUnsupported) and len(run.alias.routes) == 1:
        return error  # each caller gets it, at the cost of one call
    if isinstance(error, UpstreamAuthFailed) and not error.sent:
        # The credential probe of another run was refused, perhaps because of its caller.
        if run.router.outages.of(route) is None and await control_call(run, route) is None:
            return None
        return error
    if not error.sent:
        run.router.report(route, error)
        return error
    if error.disposition is Disposition.RETRY and not error.route_fault:
        return error  # it may pass: `confirm_outage` decides when the batch is given up
    if batch.options.sent_to(route.account) is None and error.route_fault and _needs_no_control(run, batch, route):
        run.router.report(route, error)
        return error
    result = await control_call(run, route)
    if isinstance(result, UpstreamError) and not isinstance(result, UpstreamRateLimited):
        run.router.report(route, result)
        return result
    if result is not None:
        return error  # undecided: our own side had no time or quota for the control call
    return _error_of_call(run, batch, route, error)


def _error_of_call(run: Run, batch: Batch, route: Route, error: UpstreamError) -> EmbedmillError:
    """The error of a call whose route answered a control call: its options, its width or its inputs are at fault."""
    field = batch.options.sent_to(route.account)
    if field is not None:
        return caller_options_error(field)
    is_of_width = batch.width != route.width and (error.route_fault or isinstance(error, UpstreamMisconfigured))
    if is_of_width and run.lane == "bulk":
        return _width_error(batch, route, error)
    if not is_of_width:
        error.route_fault = False  # the route serves others: the cause is an input
    # A parameter that the provider does not have is in the caller's request, and in no input.
    is_of_parameters = error.status in (400, 422) or is_of_width
    if isinstance(error, UpstreamAuthFailed) or (isinstance(error, UpstreamMisconfigured) and not is_of_parameters):
        return UpstreamRejected("the provider refused the input", status=error.status)
    return error


def _needs_no_control(run: Run, batch: Batch, route: Route) -> bool:
    """True where a reply that would repeat is the route's fault without a control call.

    Not of a single input, which may be the cause; not of a route that has succeeded before; and not of a width that
    only this caller requested.
    """
    return len(batch.inputs) > 1 and batch.width == route.width and not run.router.state_of(route).statistics.successes


async def confirm_outage(run: Run, error: UpstreamError) -> None:
    """After faults that may pass (5xx, timeouts, protocol errors): the route is down if a control call fails too."""
    key = (error.account, error.upstream_model)
    route = next((each for each in run.alias.routes if each.key == key), None)
    is_undecided = error.disposition is Disposition.RETRY and not isinstance(error, UpstreamRateLimited)
    if route is None or not is_undecided or run.router.outages.of(route) is not None:
        return
    if not error.sent:
        run.router.report(route, error)
        return
    result = await control_call(run, route)
    if isinstance(result, UpstreamError) and not isinstance(result, UpstreamRateLimited):
        run.router.report(route, result)


async def is_down_after_fault(run: Run, route: Route, state: RouteState, error: UpstreamError) -> bool:
    """Count a fault that may pass. True when the route is down, so that retries are useless.

    Bulk calls only: there are many of them, and each interactive one has a caller who waits.
    """
    if run.lane != "bulk":
        return False
    state.faults_in_a_row += 1
    if state.faults_in_a_row >= FAULTS_IN_A_ROW and run.stop.reason is None:
        state.faults_in_a_row = 0
        await confirm_outage(run, error)
    return run.router.outages.of(route) is not None


async def probe_if_down(run: R, batch: Batch, embed: EmbedOnRoute[R]) -> Batch | None:
    """The batch once a route of its alias may be called; None when a health probe has settled all of it.

    Where the run has `health_probes`, and another route serves the batch, probes run beside it.
    Raises RouteDown while all routes are down: at once when no health probe is due, else after this process's probe.
    """
    outages = run.router.outages
    until = run.deadline if run.lane == "bulk" else min(run.deadline, time.monotonic() + run.cooldown_wait_s)
    await outages.refresh(max_age_s=MAX_AGE_TO_REFUSE_S)
    while True:
        # The vector of a probe is kept, so none goes to a route of another space.
        trusted = run.router.trusted(run.alias)
        down = [(route, outage) for route in trusted if (outage := outages.of(route)) is not None]
        for route, outage in down:
            if outage.next_attempt_in_s > 0 or not accepts(route, batch):
                continue
            if run.health_probes is not None and _has_fit_route(run, batch):
                run.health_probes.start(route, run.alias.name)
                continue
            state = run.router.state_of(route)
            state.health_probes += 1  # from now on other batches wait for its result
            try:
                if await outages.claim_probe(route):
                    return await _probe(run, batch, route, embed, probe_timeout_s(route, outage.failures))
            finally:
                state.health_probes -= 1
        # Another process has made the probe, and its result is known by now.
        down = [(route, outage) for route in trusted if (outage := outages.of(route)) is not None]
        if not down or len(down) < len(trusted) or run.stop.reason is not None:
            return batch
        probed = [outages.of(route) for route, _ in down if run.router.state_of(route).health_probes]
        wait_s = min((outage.next_attempt_in_s for outage in probed if outage is not None), default=0.0)
        if wait_s <= 0 or time.monotonic() + wait_s > until:
            raise run.router.down_error(run.alias)
        with contextlib.suppress(TimeoutError):
            async with run.stop.timeout(wait_s + 0.01):
                await outages.changed()


def _has_fit_route(run: Run, batch: Batch) -> bool:
    """True where a route that takes the batch is neither down nor quarantined."""
    router, alias = run.router, run.alias
    return any(
        router.outages.of(route) is None and (*route.key, alias.space) not in router.quarantined
        for route in alias.routes
        if accepts(route, batch)
    )


async def _probe(run: R, batch: Batch, route: Route, embed: EmbedOnRoute[R], timeout_s: float) -> Batch | None:
    """Call a route that is down with one input of the batch, and keep its vector. Returns the rest of the batch.

    Raises RouteDown when the route is still down.
    """
    position = random.randrange(len(batch.inputs))
    bounded = replace(run, deadline=min(run.deadline, time.monotonic() + timeout_s))  # type: ignore[type-var]
    try:
        await embed(bounded, packing.select(batch, [position]), route)
    except UpstreamError as error:
        if error.disposition is Disposition.SPLIT or (isinstance(error, UpstreamRateLimited) and error.sent):
            run.router.outages.resolve(route)
            return batch  # the route answers, and the error is about the input
        failure: EmbedmillError | None = error
        if error.sent and (error.disposition is Disposition.RETRY or batch.options.sent_to(route.account) is not None):
            failure = await control_call(run, route)
        if failure is None:
            return batch
        run.router.outages.probe_failed(route, failure)
    except DeadlineExceeded as error:  # no free slot, or no time: the probe shows nothing
        run.router.outages.probe_failed(route, error)
    else:
        run.router.outages.resolve(route)
        others = [each for each in range(len(batch.inputs)) if each != position]
        return packing.select(batch, others) if others else None
    if any(run.router.outages.of(each) is None for each in run.router.trusted(run.alias)):
        return batch
    raise run.router.down_error(run.alias)


def caller_options_error(field: str) -> UnsupportedParameter:
    """The error for a caller whose options the provider refused. `field`: of the request."""
    return UnsupportedParameter(
        f"The provider refused a parameter of the call; it was sent what is under '{field}'. "
        "Correct that, or leave it out.",
        param=field,
        code="provider_options_refused",
    )


def _width_error(batch: Batch, route: Route, error: UpstreamError) -> UnsupportedParameter:
    """The error for a width that only this job requests. Final, since each claim would pay for the same replies."""
    cause = f"The provider {route.provider} gives no vectors of {batch.width} numbers for this model"
    advice = error.advice[:1].upper() + error.advice[1:]
    return UnsupportedParameter(f"{cause}: {error.message}. {advice}.", param="dimensions", code="dimensions_refused")
