"""embed(): the one function that turns inputs into outcomes, for sync requests and for shards of jobs alike.

Batches run side by side. Each is settled by what its errors say to do: fail, retry, fail over, split. The two edges
differ only in their deadline, their lane, and in what they do with a partial failure.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from engine import planning, tokens
from engine.limiter.waits import Waits
from engine.routing import Router, can_take
from engine.search import SUSPICION, Search, Trial, is_fault
from engine.sizes import UNLIMITED
from engine.stop import Stop
from engine.telemetry import INPUTS, TOKENS
from engine.upstream import Upstream, Witness
from models.embedding import Alias, Batch, Call, InputError, Landed, Matrix, Route
from models.errors import (
    Disposition,
    EmbedmillError,
    UnsupportedParameter,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
)

TRIES_PER_ROUTE = 3
BACKOFF_S = 0.25
BACKOFF_CAP_S = 8.0
INTERACTIVE = "interactive"
BULK = "bulk"
MILLION = Decimal(1_000_000)

OnLanded = Callable[[Landed], None]


@dataclass(slots=True)
class Flight:
    """One run of embed(): what all its batches share."""

    upstream: Upstream
    router: Router
    alias: Alias
    lane: str
    deadline: float  # on time.monotonic()
    landed: OnLanded
    # Asked before each call, and told of it.
    witness: Witness | None = None
    calls: list[Call] = field(default_factory=list)
    # What its calls wait for: a job tells it to whoever polls.
    waits: Waits = field(default_factory=Waits)
    # Given when a batch could not be settled, or from outside: calls under way may land, no new one starts.
    stop: Stop = field(default_factory=Stop)

    @property
    def stopping(self) -> EmbedmillError | None:
        return self.stop.reason


async def embed(flight: Flight, batches: Iterable[Batch], *, concurrency: int) -> None:
    """Settle every batch, `concurrency` of them at a time, handing each to `flight.landed` as it lands.

    A refused input is an outcome, not an exception. Raises the first error that says nothing about the inputs (upstream
    down, quota, deadline): what was in flight has then landed, and the rest was not started.
    """
    queue = _within_lessons(flight, batches)
    first = next(queue, None)
    if first is None:
        return
    second = next(queue, None)
    if second is None:  # most sync requests: no task, no group
        try:
            await _settle(flight, first)
        except UpstreamTimeout:
            raise  # it had its time: a provider that hangs costs an attempt, whatever ended the wait for it
        except EmbedmillError as error:
            raise flight.stopping or error from None
        return
    ahead = [first, second]
    hung: UpstreamTimeout | None = None

    async def lane() -> None:
        nonlocal hung
        while flight.stopping is None:
            batch = ahead.pop(0) if ahead else next(queue, None)
            if batch is None:
                return
            try:
                await _settle(flight, batch)
            except EmbedmillError as error:
                hung = error if isinstance(error, UpstreamTimeout) else hung
                flight.stop.give(error)
                if flight.lane == INTERACTIVE:  # the answer is an error already: what else is under way is in vain
                    for task in lanes:
                        task.cancel()

    async with asyncio.TaskGroup() as group:
        lanes = [group.create_task(lane()) for _ in range(concurrency)]
    if hung is not None and not any(call.success for call in flight.calls):
        raise hung  # as above: else a provider that hangs for ever would be asked for ever
    if flight.stopping is not None:
        raise flight.stopping


def _within_lessons(flight: Flight, batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, cut smaller where calls of their size have been refused, or a quota told, since they were packed."""
    for batch in batches:
        lesson = flight.router.lesson(flight.alias)
        # Nobody cuts what a caller waits for: one call in its turn is sooner through than many.
        most = flight.upstream.learned_tokens_per_call(flight.alias.routes) if flight.lane == BULK else None
        if most is not None:
            lesson = lesson or UNLIMITED
            lesson = replace(lesson, tokens_per_call=min(most, lesson.tokens_per_call))
        if lesson is None or planning.fits(batch, lesson):
            yield batch
        else:
            yield from planning.repack(batch, lesson)


async def _settle(flight: Flight, batch: Batch) -> bool:
    """Bring one batch to its end: vectors, or an error for each guilty input, or an exception.

    True when it was taken as it was, in one call.
    """
    trial = Trial(TRIES_PER_ROUTE)
    try:
        await _land(flight, batch, trial)
        return True
    except UpstreamTooLarge as error:
        await _halve(flight, batch, error)
    except UpstreamError as error:
        if error.disposition is Disposition.SPLIT:
            await _search(flight, batch, error, trial)
        elif is_fault(error) and flight.stopping is None:
            answers = flight.router.answers(flight.alias)
            if answers > trial.heard:
                # One input has failed alone by now. For more, what was heard says nothing of each of them yet.
                before = trial.heard if len(batch.inputs) == 1 else answers
                await _search(flight, batch, error, trial, before=before)
            elif flight.lane == BULK and len(batch.inputs) > 1:
                await _search_if_any_works(flight, batch, error, trial)
            else:
                raise
        else:
            raise
    return False


async def _land(flight: Flight, batch: Batch, trial: Trial, only: Route | None = None) -> Route:
    """Embed the batch in one call, and hand over what came; the route that it came by."""
    rows, used, route = await _over_routes(flight, batch, trial, only)
    count = len(batch.inputs)
    counted = batch.tokens if used is None else used
    if used is not None and batch.bytes:
        flight.router.sizes(route).learn(batch.bytes, used)
    cost = Decimal(counted) * route.usd_per_million_tokens / MILLION
    TOKENS.labels(route.provider, route.upstream_model, flight.lane).inc(counted)
    INPUTS.labels(flight.lane, "vector").inc(count)
    flight.landed(Landed(batch.indexes, rows, None, counted, used is None, cost, route))
    return route


async def _over_routes(
    flight: Flight, batch: Batch, trial: Trial, only: Route | None
) -> tuple[Matrix, int | None, Route]:
    """Try the fit routes in turn, or one alone. Raises the error that leaves the most to be done about it."""
    failures: list[EmbedmillError] = []
    for route in flight.router.candidates(flight.alias) if only is None else (only,):
        if not can_take(route, batch):
            continue
        if failures and flight.stopping is not None:
            break
        try:
            rows, used = await _on_route(flight, batch, route, trial)
        except UpstreamError as error:
            if error.disposition is Disposition.SPLIT:
                raise
            own = _own_options(batch, route)
            if own is not None and isinstance(error, UpstreamMisconfigured):
                # What a caller's own options brought about says nothing about the route: others must not pay for it.
                failures.append(_refused_options(own))
            else:
                failures.append(error)
                if isinstance(error, UpstreamAuthFailed):
                    flight.router.refused(route)
                elif error.disposition is Disposition.FAILOVER:
                    flight.router.cool_down(route)
            continue
        return rows, used, route
    if not failures:
        raise UpstreamRejected("no route of this model takes token arrays", code="tokens_not_supported")
    raise max(failures, key=_hope)


def _hope(error: EmbedmillError) -> int:
    """A bad answer can still be split away, a busy provider waited for; a refusal only be reported."""
    if isinstance(error, UpstreamProtocolError):
        return 2
    return int(error.disposition is Disposition.RETRY)


def _own_options(batch: Batch, route: Route) -> str | None:
    """The name under which the caller sent options of its own for this route's provider."""
    given = batch.options.provider_options
    return next((name for name in (route.account.name, route.account.kind) if given.get(name)), None)


def _refused_options(name: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"The provider refused a parameter of the call; it was sent what is under 'providerOptions.{name}'.",
        param=f"providerOptions.{name}",
        code="provider_options_refused",
    )


async def _on_route(flight: Flight, batch: Batch, route: Route, trial: Trial) -> tuple[Matrix, int | None]:
    """Call one route, again where the error says that this may help. A rate limit costs no try: it only waits."""
    tries = 0
    while True:
        flight.stop.check()
        try:
            answer = await _call(flight, batch, route)
            flight.router.answered(route, tries)
            return answer
        except UpstreamError as error:
            if error.disposition is not Disposition.RETRY:
                raise
            if isinstance(error, UpstreamRateLimited):
                # Where it was sent, the gate is closed now: the next call waits before it, or is turned away there.
                if error.sent and flight.stopping is None:
                    continue
                raise
            tries += 1
            trial.failed(flight.router.answers(flight.alias))
            spent = trial.faults if trial.on_all else tries
            if spent >= trial.most or _is_suspect(flight, error, trial) or flight.stopping is not None:
                raise
            wait_s = random.uniform(0, min(BACKOFF_CAP_S, BACKOFF_S * 2 ** (tries + 1)))
            if error.retry_after_s is not None:
                # Jitter on top, so that all who were told the same moment do not come back in it.
                wait_s = error.retry_after_s + random.uniform(0, 0.1 + error.retry_after_s / 10)
            if time.monotonic() + wait_s >= flight.deadline:
                raise
            await flight.stop.sleep(wait_s)
            if flight.stopping is not None:
                raise


async def _call(flight: Flight, batch: Batch, route: Route) -> tuple[Matrix, int | None]:
    call = functools.partial(
        flight.upstream.embed,
        batch,
        route,
        deadline=flight.deadline,
        calls=flight.calls,
        witness=flight.witness,
        interactive=flight.lane == INTERACTIVE,
        stop=flight.stop,
        waits=flight.waits,
    )
    if flight.router.first_calls.is_open(route):
        return await call()
    async with flight.router.first_calls.turn(route, flight.deadline, flight.stop):
        return await call()


def _is_suspect(flight: Flight, error: UpstreamError, trial: Trial) -> bool:
    """True when the batch fails again and again, no accident, while its routes answer others: some input is poison."""
    if trial.faults < 2 or trial.most < TRIES_PER_ROUTE or not is_fault(error):
        return False
    answers_others = flight.router.answers(flight.alias) > trial.heard
    return answers_others and flight.router.by_chance(flight.alias, trial.faults) < SUSPICION


async def _search(flight: Flight, batch: Batch, error: UpstreamError, trial: Trial, *, before: int = -1) -> None:
    search = Search(_Court(flight, batch), len(batch.inputs), trial, tries=TRIES_PER_ROUTE)
    await search.run(error, before=before)


async def _search_if_any_works(flight: Flight, batch: Batch, error: UpstreamError, trial: Trial) -> None:
    """Nothing else was heard of the routes, so nobody can tell poison from an outage: ask with one input, then search.

    Asks with a second one when that fails, for it may be the guilty one. Raises the batch's own error when both do: an
    outage costs no more than these two calls. Which two is up to chance, so that two who are guilty are not asked with
    at each attempt of their shard.
    """
    before = flight.router.answers(flight.alias)
    count = len(batch.inputs)
    for asked in random.sample(range(count), min(count, 2)):
        if await _Court(flight, batch).send([asked], 1) is None:
            others = [position for position in range(count) if position != asked]
            await _search(flight, planning.chosen(batch, others), error, trial, before=before)
            return
    raise error


class _Court:
    """What a search for poison asks of the engine, for one batch."""

    def __init__(self, flight: Flight, batch: Batch) -> None:
        self._flight = flight
        self._batch = batch
        self._answering: Route | None = None

    async def send(self, positions: Sequence[int], most: int) -> UpstreamError | None:
        if self._flight.stopping is not None:
            raise self._flight.stopping
        asked = planning.chosen(self._batch, positions)
        # To halve a group on every route would find no more. Whoever stands alone is given each of them.
        only = None if len(positions) == 1 else self._answering or self._first_for(asked)
        try:
            self._answering = await _land(self._flight, asked, Trial(most, on_all=True), only)
        except UpstreamError as error:
            if error.disposition is Disposition.SPLIT or is_fault(error):
                return error
            raise
        return None

    def _first_for(self, asked: Batch) -> Route | None:
        routes = self._flight.router.candidates(self._flight.alias)
        return next((route for route in routes if can_take(route, asked)), None)

    async def sentence(self, position: int, error: UpstreamError) -> None:
        await _sentence(self._flight, planning.chosen(self._batch, [position]), error)

    def answers(self) -> int:
        return self._flight.router.answers(self._flight.alias)

    def by_chance(self, faults: int) -> float:
        return self._flight.router.by_chance(self._flight.alias, faults)

    def acquit(self, faults: int) -> None:
        self._flight.router.acquit(self._flight.alias, faults)

    async def pause(self) -> None:
        await asyncio.sleep(random.uniform(0, BACKOFF_S))


async def _halve(flight: Flight, batch: Batch, error: UpstreamTooLarge) -> None:
    """Settle a batch that was too large as two smaller ones, and send none of its size for a while."""
    if len(batch.inputs) == 1:
        await _sentence(flight, batch, error)
        return
    taken = True
    for half in planning.halves(batch):
        if flight.stopping is not None:
            raise flight.stopping
        taken = await _settle(flight, half) and taken
    if taken:  # so it was the size, and not one of the inputs
        for route in flight.alias.routes:
            flight.router.sizes(route).too_large(planning.halves(batch)[1], error.limit)


async def _sentence(flight: Flight, batch: Batch, error: UpstreamError) -> None:
    """The one input of the batch is at fault: cut it where it is too long and may be cut, else settle it as refused."""
    shorter = _shorter(flight, batch, error)
    if shorter is not None:
        await _settle(flight, shorter)
        return
    INPUTS.labels(flight.lane, "error").inc()
    flight.landed(Landed(batch.indexes, None, _refusal(flight.alias, error), 0, False, Decimal(0), None))


def _shorter(flight: Flight, batch: Batch, error: UpstreamError) -> Batch | None:
    """The one input of the batch a quarter shorter, where it was refused as too long and may be cut."""
    if error.code != "input_too_long" or batch.options.truncate != "end":
        return None
    item = batch.inputs[0]
    kept = len(item) * 3 // 4
    if kept < 1:
        return None
    return replace(batch, inputs=[item[:kept]], tokens=tokens.estimate(item[:kept]))


def _refusal(alias: Alias, error: UpstreamError) -> InputError:
    if error.code == "input_too_long":
        return planning.too_long(alias.max_input_tokens)
    if isinstance(error, UpstreamProtocolError):
        return InputError("invalid_upstream_response", "the provider's answer for this input could not be used", True)
    if error.code == "upstream_too_large":
        return InputError("input_too_long", "the input is too large for the provider by itself")
    if error.code == "tokens_not_supported":
        return InputError("tokens_not_supported", error.message)
    if is_fault(error):
        return InputError("upstream_rejected", "the provider fails on this input, and on no other", True)
    return InputError("upstream_rejected", "the provider refused this input")
