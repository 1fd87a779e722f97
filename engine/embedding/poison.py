"""Finding the inputs that a batch fails with, on the routes of a run; and settling those that are found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from engine.embedding.attempts import (
    BACKOFF_S,
    BULK,
    INTERACTIVE,
    EmbedRun,
    call_route,
    embed_once,
)
from engine.embedding.bisect import RouteFails, Search, Trial, is_fault, is_own_limit
from engine.embedding.outage_check import refused_options
from engine.observability.telemetry import INPUTS
from engine.planning import packing, truncation
from engine.routing.control_calls import control_batch
from engine.routing.evidence import MAX_ACCIDENT_BULK, MAX_ACCIDENT_INTERACTIVE
from engine.routing.router import can_take
from models.embedding import Batch, BatchOutcome, InputError, Options, Route
from models.errors import (
    Disposition,
    EmbedmillError,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamTooLarge,
)

# A refused input that may be cut is sent again so often, as a multiple of its batch, and some times more.
CUTS_PER_INPUT, SPARE_CUTS = 2, 32


def may_be_found(error: UpstreamError) -> bool:
    """True for errors that some input of the batch may have brought about."""
    is_found = error.disposition is Disposition.SPLIT or is_fault(error) or is_own_limit(error)
    return is_found and not error.route_fault


async def find(flight: EmbedRun, batch: Batch, error: UpstreamError, trial: Trial) -> None:
    """Settle a batch that failed as a whole: vectors, and an error for each input that is to blame.

    Raises the error of the route when nothing gets through to it; what was proved is settled then.
    """
    if error.code == "tokens_not_supported":  # nothing was sent, and nothing is to be found out
        prober = _BatchProber(flight, batch, flight.alias.routes[0])
        for position in range(len(batch.inputs)):
            await prober.fail(position, error)
        return
    if len(batch.inputs) == 1 and flight.lane == INTERACTIVE:
        await _answer_one(flight, batch, error)
        return
    last: EmbedmillError = error
    failures = max(1, trial.faults)
    # A refusal is no fault of the trial, and was sent all the same. Each further route has had as much.
    sent = min(max(1, trial.faults + (not is_fault(error))), 2) * len(batch.inputs)
    for route in flight.router.candidates(flight.alias):
        if not can_take(route, batch):
            continue
        prober = _BatchProber(flight, batch, route)
        most = 1 if flight.lane == INTERACTIVE else None
        search = Search(prober, len(batch.inputs), sent=sent, max_suspects=most)
        try:
            # One call shows for all batches that fail at once whether it is the route. Who waits for the answer to a
            # refusal is not made to wait for that too: the search shows it.
            # Nor is a call of ours needed again after a 429; only one with the caller's options, where it has any.
            is_shown = is_own_limit(error) and batch.options.sent_to(route.account) is None
            if (flight.lane == BULK or is_fault(error)) and not is_shown:
                await prober.check_route(error)
            await search.run(error, failures)
            return
        except RouteFails as raised:
            last = _fault_of_route(flight, batch, route, raised.error)
            if isinstance(last, UpstreamError) and batch.options.sent_to(route.account) is None:
                flight.router.report(route, last)
            if not search.pending or not isinstance(last, UpstreamError):
                break
            batch, sent = packing.chosen(batch, search.pending), 0
    raise last


async def _answer_one(flight: EmbedRun, batch: Batch, error: UpstreamError) -> None:
    """The one input of a sync call: whoever sent it is told at once what the provider says."""
    if is_fault(error):
        raise error
    prober = _BatchProber(flight, batch, flight.router.candidates(flight.alias)[0])
    if not await prober.cut(0, error):
        await prober.fail(0, error)


def _fault_of_route(flight: EmbedRun, batch: Batch, route: Route, error: UpstreamError) -> EmbedmillError:
    """What it means that a call with a text of ours fails too."""
    if error.disposition is not Disposition.SPLIT:
        return error
    own = batch.options.sent_to(route.account)
    if own is not None:
        return refused_options(own)
    return UpstreamMisconfigured(
        f"the provider {route.provider} refuses every input, also one that is surely good (status {error.status})",
        status=error.status,
        code="upstream_refuses_everything",
        route_fault=True,
        advice=(
            f"Check the key, the address and the settings of providers.{route.provider}, and the upstream model "
            f"{route.upstream_model} of models.{flight.alias.name}"
        ),
    )


class _BatchProber:
    """What a search asks of the engine, for one batch on one route."""

    def __init__(self, flight: EmbedRun, batch: Batch, route: Route) -> None:
        self._flight = flight
        self._batch = batch
        self._route = route
        self._health = flight.router.health(route)
        self._cuts_left = CUTS_PER_INPUT * len(batch.inputs) + SPARE_CUTS

    async def check_route(self, error: UpstreamError) -> None:
        """Raise RouteFails unless the route answers: others since the batch failed, or a control call."""
        heard = self.answers()
        async with self._flight.checking:
            if self.answers() > heard:
                return
            for _ in range(2):
                failed = await self.control()
                if failed is None:
                    return
                if failed.disposition is Disposition.SPLIT:
                    break
                await self.pause()
        raise RouteFails(failed or error)

    async def send(self, positions: Sequence[int]) -> UpstreamError | None:
        return await self._once(packing.chosen(self._batch, positions))

    async def _once(self, batch: Batch) -> UpstreamError | None:
        if self._flight.stopping is not None:
            raise self._flight.stopping
        # To try a group on every route would find no more. Whoever stands alone is given each of them.
        only = self._route if len(batch.inputs) > 1 else None
        try:
            await embed_once(self._flight, batch, Trial(1, on_all=True), only)
        except UpstreamError as error:
            if may_be_found(error):
                return error
            raise
        return None

    async def control(self) -> UpstreamError | None:
        if self._flight.stopping is not None:
            raise self._flight.stopping
        options = replace(self._batch.options, truncate="none")
        batch = control_batch(self._batch.width, options)
        try:
            await call_route(self._flight, batch, self._route, test="control_call")
        except UpstreamError as error:
            if may_be_found(error):
                return error
            raise
        self._flight.router.answered(self._route, 0)
        return None

    async def fail(self, position: int, error: UpstreamError) -> bool:
        INPUTS.labels(self._flight.lane, "error").inc()
        index = [self._batch.indexes[position]]
        refusal = _refusal(error, self._batch.options)
        self._flight.landed(BatchOutcome(index, None, refusal, 0, False, Decimal(0), None))
        return self._flight.lane == BULK

    async def cut(self, position: int, error: UpstreamError) -> bool:
        batch = packing.chosen(self._batch, [position])
        cuts = 0
        while (shorter := truncation.shorter(batch, error, cuts)) is not None:
            if self._cuts_left <= 0:
                raise error
            self._cuts_left, cuts = self._cuts_left - 1, cuts + 1
            failed = await self._once(shorter)
            if failed is None:
                return True
            batch, error = shorter, failed
        return False

    def answers(self) -> int:
        return self._health.answers

    def is_enough(self, error: UpstreamError, failures: int) -> bool:
        most = MAX_ACCIDENT_BULK if self._flight.lane == BULK else MAX_ACCIDENT_INTERACTIVE
        return self._health.is_enough(failures, refusals=not is_fault(error), max_accident=most)

    def passed_by_itself(self, error: UpstreamError, failures: int) -> None:
        self._health.passed(failures, refusals=not is_fault(error))

    def fitting(self, positions: Sequence[int], error: UpstreamTooLarge) -> None:
        group = packing.chosen(self._batch, positions)
        for route in self._flight.alias.routes:
            self._flight.router.sizes(route).too_large(group, error.limit)

    def too_many(self, most: int) -> None:
        sizes = self._flight.router.sizes(self._route)
        sizes.too_large(packing.chosen(self._batch, range(most)), "inputs")

    async def pause(self) -> None:
        await asyncio.sleep(random.uniform(0, BACKOFF_S))


def _refusal(error: UpstreamError, options: Options) -> InputError:
    if error.code == "input_too_long":
        return truncation.too_long_error(error, options)
    if isinstance(error, UpstreamProtocolError):
        return InputError(
            "invalid_upstream_response",
            "the provider's answer for this input could not be used: try it again later, or with another model",
            True,
        )
    if error.code == "upstream_too_large":
        return InputError("input_too_long", "the input is too large for the provider by itself: send it in parts")
    if error.code == "tokens_not_supported":
        return InputError("tokens_not_supported", error.message)
    if is_fault(error):
        return InputError(
            "upstream_rejected",
            "the provider fails on this input, and on no other: try it again later, or change it",
            True,
        )
    return InputError(
        "upstream_rejected", "the provider refused this input, and takes others: change it, or leave it out"
    )
