"""Makes one successful call for one batch: tries the fit routes in turn, and retries each where its error allows it."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.cancellation import CancellationToken
from engine.embedding import diagnosis, hang_detector, hedging, rate_limit_scope
from engine.embedding.bisect import P_FLAKE_TO_BISECT, Attempts, is_server_fault
from engine.ledger.call_cost import Spending, cost_of, paid
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, WITH_ALTERNATIVE, MaxWait
from engine.planning.silent_truncation import PLAUSIBLE_BYTES_PER_TOKEN, cut_upstream
from engine.planning.token_estimator import is_exact_for
from engine.route_state.state import RouteState
from engine.routing.health_probes import HealthProbes
from engine.routing.router import Router, accepts
from engine.upstream.call import CallContext, CallObserver, Embedded, Upstream
from models.embedding import Alias, Batch, BatchOutcome, Call, Route
from models.errors import (
    DeadlineExceeded,
    Disposition,
    EmbedmillError,
    UnsupportedParameter,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)

TRIES_PER_ROUTE = 3
# A large batch is not sent whole a third time: the bisection sends smaller groups of it.
TRIES_OF_LARGE_BATCH = 2
FEW_INPUTS = 8
EXTRA_TRIES_AFTER_TIMEOUT = 2
BACKOFF_S = 0.25
BACKOFF_CAP_S = 8.0
INTERACTIVE = "interactive"
BULK = "bulk"

OutcomeSink = Callable[[BatchOutcome], None]

"""Vectors, and tokens as the provider reported them."""


@dataclass(slots=True)
class EmbedRun:
    """One run of embed(): what all its batches share."""

    upstream: Upstream
    router: Router
    alias: Alias
    lane: str
    deadline: float  # on time.monotonic()
    on_outcome: OutcomeSink  # called with each outcome as it comes
    tenant: str = ""  # the project on whose behalf it runs: waiting calls of tenants are served in turn
    # Called before each call, and with its failure.
    call_observer: CallObserver | None = None
    calls: list[Call] = field(default_factory=list)
    spending: Spending | None = None
    # Upstream calls that it may make beyond one for each batch; None: no limit.
    max_extra_calls: int | None = None
    batches: int = 0  # begun so far
    started_calls: int = 0
    # One batch at a time checks whether a route works at all.
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    # What its calls wait for; a job reports it to whoever polls.
    waits: CallWaits = field(default_factory=CallWaits)
    # Of the interactive lane: longest wait for the cooldown of the last route that is left.
    cooldown_wait_s: float = 5.0
    # Probes routes that are down while others serve; None: a batch of the run makes the probes.
    health_probes: HealthProbes | None = None
    # Cancelled when a batch could not be settled, or from outside: calls under way may end, no new one starts.
    stop: CancellationToken = field(default_factory=CancellationToken)

    @property
    def cancel_reason(self) -> EmbedmillError | None:
        """The error that cancelled the run."""
        return self.stop.reason


async def embed_once(run: EmbedRun, batch: Batch, attempts: Attempts, only: Route | None = None) -> Route:
    """Embed the batch in one call, and hand its outcome to the run. Returns the route that served it.

    `only`: the one route to try. Raises the last errors of the routes, as `_try_routes` does.
    """
    (rows, used, cut_there), route, state = await _try_routes(run, batch, attempts, only)
    billed_tokens = batch.tokens if used is None else used
    if used is not None and batch.bytes:
        state.estimator.observe(batch.bytes, used)
    cost = cost_of(billed_tokens, route)
    state.metrics.delivered(run.lane, billed_tokens, len(batch.inputs))
    truncated: Sequence[int] = batch.indexes if batch.is_truncated else [batch.indexes[at] for at in cut_there]
    if used is not None and batch.bytes > used * PLAUSIBLE_BYTES_PER_TOKEN:
        cut = cut_upstream(batch, used, exact=is_exact_for(route), is_quick=run.lane == INTERACTIVE)
        truncated = truncated or cut
    run.on_outcome(BatchOutcome(batch.indexes, rows, None, billed_tokens, used is None, cost, route, truncated))
    return route


async def _try_routes(
    run: EmbedRun, batch: Batch, attempts: Attempts, only: Route | None
) -> tuple[Embedded, Route, RouteState]:
    """Try the fit routes in turn, or one alone. Raises the error of `_error_to_raise`.

    An interactive call does not wait long for a quota while another route is left; if all routes need a wait, it takes
    the shortest one.
    """
    failures: list[EmbedmillError] = []
    refused_waits: list[tuple[float, Route, RouteState]] = []  # routes that would let it start after so many seconds
    candidates = run.router.candidates(run.alias, run.tenant) if only is None else [only]
    routes = [route for route in candidates if accepts(route, batch)]
    raced = await _hedged(run, batch, routes, attempts)
    if raced.answer is not None:
        return raced.answer
    for position, route in enumerate(routes):
        if failures and run.cancel_reason is not None:
            break
        state = run.router.state_of(route)
        has_alternative = position + 1 < len(routes)
        max_wait = _max_wait(run, has_alternative=has_alternative)
        reply, error = None, raced.errors.get(position)
        if error is None:
            reply, error = await _try_route(
                run, batch, route, state, attempts, max_wait, has_alternative=has_alternative
            )
        if reply is not None:
            return reply, route, state
        if error is not None:
            failures.append(error)
        if max_wait is WITH_ALTERNATIVE and isinstance(error, UpstreamRateLimited) and not error.sent:
            refused_waits.append((error.retry_after_s or 0.0, route, state))
    if refused_waits and run.cancel_reason is None:
        _, route, state = min(refused_waits, key=lambda each: each[0])
        reply, error = await _try_route(run, batch, route, state, attempts, _max_wait(run, has_alternative=False))
        if reply is not None:
            return reply, route, state
    if not failures:
        raise UpstreamRejected("no route of this model takes token arrays", code="tokens_not_supported")
    raise _error_to_raise(failures)


async def _hedged(run: EmbedRun, batch: Batch, routes: Sequence[Route], attempts: Attempts) -> hedging.Raced:
    """What a hedged call of the first two routes gives; nothing where the model, or the lane, has none."""
    if not run.alias.hedge or run.lane == BULK or len(routes) < 2:
        return hedging.NOT_RACED

    async def try_route(route: Route, state: RouteState, max_wait: MaxWait, only_once: bool) -> hedging.Tried:
        tries = Attempts(1) if only_once else attempts
        return hedging.Tried(*await _try_route(run, batch, route, state, tries, max_wait))

    return await hedging.race(run, batch, routes, try_route)


def _max_wait(run: EmbedRun, *, has_alternative: bool) -> MaxWait:
    """Longest wait of the next call for its start. A request that is partly paid for waits for the rest."""
    if run.lane == BULK:
        return UNBOUNDED
    if has_alternative:
        return WITH_ALTERNATIVE
    if run.calls and any(call.success for call in run.calls):
        return UNBOUNDED
    return _max_cooldown_wait(run.cooldown_wait_s)


@functools.lru_cache(maxsize=8)
def _max_cooldown_wait(cooldown_s: float) -> MaxWait:
    return MaxWait(cooldown_s=cooldown_s)


async def _try_route(
    run: EmbedRun,
    batch: Batch,
    route: Route,
    state: RouteState,
    attempts: Attempts,
    max_wait: MaxWait,
    *,
    has_alternative: bool = False,
) -> tuple[Embedded | None, EmbedmillError | None]:
    """The route's reply, or its diagnosed error. Raises errors with disposition SPLIT: they are about the inputs."""
    is_repeated = False
    while True:
        try:
            return await _call_with_retries(run, batch, route, state, attempts, max_wait, has_alternative), None
        except UpstreamError as raised:
            if raised.disposition is Disposition.SPLIT:
                raise
            error = await diagnosis.diagnose(run, batch, route, raised)
            if isinstance(error, UpstreamError) and error.disposition is Disposition.SPLIT:
                # For example, the credential was refused, and a control call a moment later was not: no input is
                # blamed for an error that occurred once.
                if not is_repeated and run.cancel_reason is None:
                    is_repeated = True
                    continue
                raise error from raised
            if error is not None or run.cancel_reason is not None:
                return None, error or raised


def _error_to_raise(failures: Sequence[EmbedmillError]) -> EmbedmillError:
    """The most recoverable error. Among equals, the last refusal of the request itself; without one, the first error.

    A refused credential of one account says nothing of a request that the next account has read and refused.
    """
    best = max(map(_recoverability, failures))
    equals = [error for error in failures if _recoverability(error) == best]
    return next((error for error in reversed(equals) if _is_about_request(error)), equals[0])


def _is_about_request(error: EmbedmillError) -> bool:
    """True where a provider accepted the credential, and refused the model or a parameter of the request."""
    return isinstance(error, UnsupportedParameter) or (isinstance(error, UpstreamMisconfigured) and error.sent)


def _recoverability(error: EmbedmillError) -> tuple[int, float]:
    """Rank of an error by what can still be done: 2 bisect (protocol error), 1 retry later, 0 report.

    Among rate limits, the soonest retry ranks highest.
    """
    wait_s = error.retry_after_s or 0.0 if isinstance(error, UpstreamRateLimited) else 0.0
    if isinstance(error, UpstreamProtocolError):
        return 2, 0.0
    return int(error.disposition is Disposition.RETRY), -wait_s


async def _call_with_retries(
    run: EmbedRun,
    batch: Batch,
    route: Route,
    state: RouteState,
    attempts: Attempts,
    max_wait: MaxWait,
    has_alternative: bool,
) -> Embedded:
    """Call one route, again where the error allows it. A rate limit costs no try: the next call waits for it.

    Where there is no connection, an alternative is tried at once. Raises the last error.
    """
    tries = refusals = 0
    tenants = state.tenant_refusals
    while True:
        run.stop.raise_if_cancelled()
        try:
            # After a 429 to this batch, or to its tenant alone, the next one starts no cooldown before a control
            # call has met it too.
            needs_confirmation = refusals > 0 or (bool(tenants.by_tenant) and tenants.is_known(run.tenant))
            reply = await call_route(run, batch, route, state, max_wait=max_wait, needs_confirmation=needs_confirmation)
            run.router.record_success(route, state, tries)
            if refusals:
                tenants.clear(run.tenant)
            return reply
        except UpstreamError as error:
            if error.disposition is not Disposition.RETRY or error.route_fault:
                raise
            if isinstance(error, UpstreamRateLimited):
                # If it was sent, the route is cooling down: the next call waits for that, or is refused at once.
                refusals += 1
                is_bisecting = attempts.shared
                if await rate_limit_scope.should_retry(run, route, state, error, max_wait, is_bisecting=is_bisecting):
                    continue
                raise
            if has_alternative and not error.sent:
                raise
            tries += 1
            attempts.record_fault(run.router.success_count(run.alias))
            is_down = await diagnosis.is_down_after_fault(run, route, state, error)
            if is_down or _is_exhausted(run, error, attempts, tries):
                raise
            wait_s = _backoff_s(error, tries)
            if time.monotonic() + wait_s >= run.deadline or wait_s > max_wait.quota_s:
                raise
            await run.stop.sleep(wait_s)
            if run.cancel_reason is not None:
                raise


def _is_exhausted(run: EmbedRun, error: UpstreamError, attempts: Attempts, tries: int) -> bool:
    """True when the route gets no further try for this batch. `tries`: on this route."""
    maximum = attempts.maximum
    if isinstance(error, UpstreamTimeout) and run.lane == BULK and maximum > 1:
        maximum += EXTRA_TRIES_AFTER_TIMEOUT  # some calls that hang end no shard; if all do, the route counts as down
    if (attempts.faults if attempts.shared else tries) >= maximum:
        return True
    return _looks_poisoned(run, error, attempts) or run.cancel_reason is not None


def _backoff_s(error: UpstreamError, tries: int) -> float:
    if error.retry_after_s is None:
        return random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_S * 2 ** (tries + 1)))
    # Jitter on top, so that not all callers with the same Retry-After come back in the same moment.
    return error.retry_after_s + random.uniform(0, 0.1 + error.retry_after_s / 10)


async def call_route(
    run: EmbedRun,
    batch: Batch,
    route: Route,
    state: RouteState,
    *,
    max_wait: MaxWait = UNBOUNDED,
    purpose: str | None = None,
    needs_confirmation: bool = False,
) -> Embedded:
    """Make one call. `purpose`, `needs_confirmation`: see CallContext.

    Raises as Upstream.embed does; DeadlineExceeded when the run has made as many calls as it may.
    """
    if run.max_extra_calls is not None and run.started_calls >= run.batches + run.max_extra_calls:
        raise DeadlineExceeded(
            f"the request needed more than {run.started_calls} calls to the provider: send fewer inputs at once",
            code="too_many_upstream_calls",
        )
    run.started_calls += 1
    if run.lane == BULK:
        hang_detector.watch(run)
    context = CallContext(
        state,
        run.deadline,
        [],
        run.call_observer,
        run.lane == INTERACTIVE,
        run.stop,
        run.waits,
        max_wait,
        purpose,
        run.tenant,
        needs_confirmation,
    )
    try:
        with paid(run.spending, batch, route, context.calls, is_control=purpose is not None):
            if state.credential_probe.is_verified:
                return await run.upstream.embed(batch, route, context)
            async with state.credential_probe.guard(run.deadline, run.stop):
                return await run.upstream.embed(batch, route, context)
    except UpstreamError as error:
        error.account, error.upstream_model = route.key
        raise
    finally:
        run.calls += context.calls


def _looks_poisoned(run: EmbedRun, error: UpstreamError, attempts: Attempts) -> bool:
    """True when the batch fails repeatedly, too often for flakes, while its routes serve others: an input is poison."""
    if attempts.faults < 2 or attempts.maximum < TRIES_PER_ROUTE or not is_server_fault(error):
        return False
    others_succeed = run.router.success_count(run.alias) > attempts.successes_before
    return others_succeed and run.router.flake_probability(run.alias, attempts.faults) < P_FLAKE_TO_BISECT
