"""One call for one batch: the fit routes in turn, each tried again where its error says that this may help."""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from engine.cancellation import CancellationToken
from engine.embedding import hang_watch, outage_check, rate_limits
from engine.embedding.bisect import SUSPICION, Trial, is_fault
from engine.ledger.billing import MILLION, Spending, paid
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, WITH_ALTERNATIVE, MaxWait
from engine.observability.route_metrics import delivery_metrics
from engine.planning import provider_truncation, tokens
from engine.routing.outages import route_key
from engine.routing.router import Router, can_take
from engine.upstream.call import CallObserver, Upstream
from models.embedding import Alias, Batch, BatchOutcome, Call, Matrix, Route
from models.errors import (
    DeadlineExceeded,
    Disposition,
    EmbedmillError,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)

TRIES_PER_ROUTE = 3
# A large batch is not sent whole a third time: smaller groups of it are.
TRIES_OF_MANY = 2
FEW_INPUTS = 8
MORE_TRIES_AFTER_A_HANG = 2
BACKOFF_S = 0.25
BACKOFF_CAP_S = 8.0
INTERACTIVE = "interactive"
BULK = "bulk"

OutcomeSink = Callable[[BatchOutcome], None]


@dataclass(slots=True)
class EmbedRun:
    """One run of embed(): what all its batches share."""

    upstream: Upstream
    router: Router
    alias: Alias
    lane: str
    deadline: float  # on time.monotonic()
    landed: OutcomeSink
    tenant: str = ""  # the project on whose behalf it runs: tenants have their turns where calls wait
    # Asked before each call, and told of it.
    call_observer: CallObserver | None = None
    calls: list[Call] = field(default_factory=list)
    spending: Spending | None = None
    # Upstream calls that it may make beyond one for each batch; None: as many as it takes.
    max_extra_calls: int | None = None
    batches: int = 0  # begun so far
    started_calls: int = 0
    # One batch at a time asks whether a route answers at all.
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
    # What its calls wait for: a job tells it to whoever polls.
    waits: CallWaits = field(default_factory=CallWaits)
    # Of the interactive lane: how long a call waits for a provider that has said 429, where no other route is left.
    cooldown_wait_s: float = 5.0
    # Given when a batch could not be settled, or from outside: calls under way may land, no new one starts.
    stop: CancellationToken = field(default_factory=CancellationToken)

    @property
    def stopping(self) -> EmbedmillError | None:
        return self.stop.reason


async def embed_once(flight: EmbedRun, batch: Batch, trial: Trial, only: Route | None = None) -> Route:
    """Embed the batch in one call, and hand over what came; the route that it came by."""
    rows, used, route = await _try_routes(flight, batch, trial, only)
    count = len(batch.inputs)
    counted = batch.tokens if used is None else used
    if used is not None and batch.bytes:
        flight.router.sizes(route).learn(batch.bytes, used)
    cost = Decimal(counted) * route.usd_per_million_tokens / MILLION
    tokens_metric, inputs_metric = delivery_metrics(route.provider, route.upstream_model, flight.lane)
    tokens_metric.inc(counted)
    inputs_metric.inc(count)
    truncated: Sequence[int] = batch.indexes if batch.is_cut else ()
    if used is not None and provider_truncation.may_be_cut(batch, used):
        is_quick = flight.lane == INTERACTIVE
        cut = provider_truncation.cut_upstream(batch, used, exact=tokens.is_exact_for(route), is_quick=is_quick)
        truncated = truncated or cut
    flight.landed(BatchOutcome(batch.indexes, rows, None, counted, used is None, cost, route, truncated))
    return route


async def _try_routes(
    flight: EmbedRun, batch: Batch, trial: Trial, only: Route | None
) -> tuple[Matrix, int | None, Route]:
    """Try the fit routes in turn, or one alone. Raises the error that leaves the most to be done about it.

    An interactive call does not wait long for a quota while another route is left; then it waits for the shortest wait.
    """
    failures: list[EmbedmillError] = []
    refusal_message: list[tuple[float, Route]] = []
    candidates = flight.router.candidates(flight.alias) if only is None else [only]
    routes = [route for route in candidates if can_take(route, batch)]
    for place, route in enumerate(routes):
        if failures and flight.stopping is not None:
            break
        max_wait = _patience(flight, has_alternative=place + 1 < len(routes))
        answer, error = await _judged(flight, batch, route, trial, max_wait)
        if answer is not None:
            return *answer, route
        if error is not None:
            failures.append(error)
        if max_wait is WITH_ALTERNATIVE and isinstance(error, UpstreamRateLimited) and not error.sent:
            refusal_message.append((error.retry_after_s or 0.0, route))
    if refusal_message and flight.stopping is None:
        _, route = min(refusal_message, key=lambda each: each[0])
        answer, error = await _judged(flight, batch, route, trial, _patience(flight, has_alternative=False))
        if answer is not None:
            return *answer, route
    if not failures:
        raise UpstreamRejected("no route of this model takes token arrays", code="tokens_not_supported")
    raise max(failures, key=_recoverability)


def _patience(flight: EmbedRun, *, has_alternative: bool) -> MaxWait:
    """How long the next call may wait for its start. A caller whose request is partly paid for waits for the rest."""
    if flight.lane == BULK:
        return UNBOUNDED
    if has_alternative:
        return WITH_ALTERNATIVE
    if flight.calls and any(call.success for call in flight.calls):
        return UNBOUNDED
    return _gate_patience(flight.cooldown_wait_s)


@functools.lru_cache(maxsize=8)
def _gate_patience(cooldown_s: float) -> MaxWait:
    return MaxWait(cooldown_s=cooldown_s)


async def _judged(
    flight: EmbedRun, batch: Batch, route: Route, trial: Trial, max_wait: MaxWait
) -> tuple[tuple[Matrix, int | None] | None, EmbedmillError | None]:
    """What the route answered, or what its failure comes to. Raises what says that the inputs are to be split."""
    is_again = False
    while True:
        try:
            return await _call_with_retries(flight, batch, route, trial, max_wait), None
        except UpstreamError as raised:
            if raised.disposition is Disposition.SPLIT:
                raise
            error = await outage_check.judge(flight, batch, route, raised)
            if isinstance(error, UpstreamError) and error.disposition is Disposition.SPLIT:
                # The credential was refused, say, and a call of ours a moment later was not: no input is blamed for
                # what happened once.
                if not is_again and flight.stopping is None:
                    is_again = True
                    continue
                raise error from raised
            if error is not None or flight.stopping is not None:
                return None, error or raised


def _recoverability(error: EmbedmillError) -> tuple[int, float]:
    """A bad answer can still be split away, a busy provider waited for; a refusal only be reported.

    Of those that say when, the soonest.
    """
    wait_s = error.retry_after_s or 0.0 if isinstance(error, UpstreamRateLimited) else 0.0
    if isinstance(error, UpstreamProtocolError):
        return 2, 0.0
    return int(error.disposition is Disposition.RETRY), -wait_s


async def _call_with_retries(
    flight: EmbedRun, batch: Batch, route: Route, trial: Trial, max_wait: MaxWait
) -> tuple[Matrix, int | None]:
    """Call one route, again where the error says that this may help. A rate limit costs no try: it only waits."""
    tries = refusals = 0
    while True:
        flight.stop.raise_if_cancelled()
        try:
            doubted = rate_limits.is_to_be_checked(flight, route, refusals)
            answer = await call_route(flight, batch, route, max_wait=max_wait, is_doubted=doubted)
            flight.router.answered(route, tries)
            if refusals:
                flight.router.own_refusals.forget((*route_key(route), flight.tenant))
            return answer
        except UpstreamError as error:
            if error.disposition is not Disposition.RETRY or error.route_fault:
                raise
            if isinstance(error, UpstreamRateLimited):
                # Where it was sent, the gate is closed now: the next call waits before it, or is turned away there.
                refusals += 1
                is_searched = trial.on_all
                if await rate_limits.may_try_again(flight, batch, route, error, max_wait, is_searched=is_searched):
                    continue
                raise
            tries += 1
            trial.failed(flight.router.answers(flight.alias))
            if await outage_check.is_in_vain(flight, route, error):
                raise
            spent = trial.faults if trial.on_all else tries
            most = trial.most
            if isinstance(error, UpstreamTimeout) and flight.lane == BULK and most > 1:
                most += MORE_TRIES_AFTER_A_HANG  # that some calls hang ends no shard; that all do is noticed above
            if spent >= most or _is_suspect(flight, error, trial) or flight.stopping is not None:
                raise
            wait_s = random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_S * 2 ** (tries + 1)))
            if error.retry_after_s is not None:
                # Jitter on top, so that all who were told the same moment do not come back in it.
                wait_s = error.retry_after_s + random.uniform(0, 0.1 + error.retry_after_s / 10)
            if time.monotonic() + wait_s >= flight.deadline or wait_s > max_wait.quota_s:
                raise
            await flight.stop.sleep(wait_s)
            if flight.stopping is not None:
                raise


async def call_route(
    flight: EmbedRun,
    batch: Batch,
    route: Route,
    *,
    max_wait: MaxWait = UNBOUNDED,
    test: str | None = None,
    is_doubted: bool = False,
) -> tuple[Matrix, int | None]:
    """Make one call. `test`: why it is made, where nobody gets its vectors. Raises as Upstream.embed does."""
    if flight.max_extra_calls is not None and flight.started_calls >= flight.batches + flight.max_extra_calls:
        raise DeadlineExceeded(
            f"the request needed more than {flight.started_calls} calls to the provider: send fewer inputs at once",
            code="too_many_upstream_calls",
        )
    flight.started_calls += 1
    if flight.lane == BULK:
        hang_watch.watch(flight)
    made: list[Call] = []
    call = functools.partial(
        flight.upstream.embed,
        batch,
        route,
        deadline=flight.deadline,
        calls=made,
        call_observer=flight.call_observer,
        interactive=flight.lane == INTERACTIVE,
        stop=flight.stop,
        waits=flight.waits,
        max_wait=max_wait,
        test=test,
        tenant=flight.tenant,
        is_doubted=is_doubted,
    )
    try:
        with paid(flight.spending, batch, route, made, is_ours=test is not None):
            if flight.router.first_calls.is_open(route):
                return await call()
            async with flight.router.first_calls.turn(route, flight.deadline, flight.stop):
                return await call()
    except UpstreamError as error:
        error.account, error.upstream_model = route_key(route)
        raise
    finally:
        flight.calls += made


def _is_suspect(flight: EmbedRun, error: UpstreamError, trial: Trial) -> bool:
    """True when the batch fails again and again, no accident, while its routes answer others: some input is poison."""
    if trial.faults < 2 or trial.most < TRIES_PER_ROUTE or not is_fault(error):
        return False
    answers_others = flight.router.answers(flight.alias) > trial.heard
    return answers_others and flight.router.by_chance(flight.alias, trial.faults) < SUSPICION
