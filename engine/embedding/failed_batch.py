"""Settles a batch that failed as a whole: bisects it on the routes of its run, and records each input's outcome."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from engine.embedding.attempts import BACKOFF_S, BULK, INTERACTIVE, EmbedRun, call_route, embed_once
from engine.embedding.bisect import Attempts, PoisonBisection, RouteFails, is_server_fault, is_tenant_rate_limit
from engine.embedding.diagnosis import caller_options_error
from engine.observability.telemetry import INPUTS
from engine.planning import packing, shorten_after_refusal
from engine.route_state.call_statistics import MAX_COINCIDENCE_BULK, MAX_COINCIDENCE_INTERACTIVE
from engine.route_state.control_call import control_batch
from engine.routing.router import accepts
from models.embedding import Batch, BatchOutcome, InputError, Options, Route
from models.errors import (
    Disposition,
    EmbedmillError,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamTooLarge,
)

# Calls with a shorter form of an over-long input: a multiple of the batch's inputs, plus a few.
TRUNCATIONS_PER_INPUT, SPARE_TRUNCATIONS = 2, 32


def may_be_poisoned(error: UpstreamError) -> bool:
    """True for errors that some input of the batch may have caused."""
    is_candidate = error.disposition is Disposition.SPLIT or is_server_fault(error) or is_tenant_rate_limit(error)
    return is_candidate and not error.route_fault


async def settle(run: EmbedRun, batch: Batch, error: UpstreamError, attempts: Attempts) -> None:
    """Give each input of the batch an outcome: a vector, or an error for the inputs at fault.

    Raises the error of the route when no call to it succeeds; outcomes that were proved are recorded before.
    """
    if error.code == "tokens_not_supported":  # nothing was sent, and no call can show more
        prober = _BatchProber(run, batch, run.alias.routes[0])
        for position in range(len(batch.inputs)):
            await prober.fail_input(position, error)
        return
    if len(batch.inputs) == 1 and run.lane == INTERACTIVE:
        await _settle_single(run, batch, error)
        return
    last: EmbedmillError = error
    failures = max(1, attempts.faults)
    # A refusal is no fault, and was sent all the same. Each further route has been sent as much.
    sent = min(max(1, attempts.faults + (not is_server_fault(error))), 2) * len(batch.inputs)
    for route in run.router.candidates(run.alias, run.tenant):
        if not accepts(route, batch):
            continue
        prober = _BatchProber(run, batch, route)
        max_suspects = 1 if run.lane == INTERACTIVE else None
        bisection = PoisonBisection(prober, len(batch.inputs), sent=sent, max_suspects=max_suspects)
        try:
            # One control call shows, for all batches that fail at once, whether the route is the cause. Refusals of
            # interactive calls skip it: their bisection shows it. So does a 429 without options of the caller: a
            # control call was made when it was diagnosed.
            is_shown = is_tenant_rate_limit(error) and batch.options.sent_to(route.account) is None
            if (run.lane == BULK or is_server_fault(error)) and not is_shown:
                await prober.check_route(error)
            await bisection.run(error, failures)
            return
        except RouteFails as raised:
            last = _error_of_route(run, batch, route, raised.error)
            if isinstance(last, UpstreamError) and batch.options.sent_to(route.account) is None:
                run.router.report(route, last)
            if not bisection.pending or not isinstance(last, UpstreamError):
                break
            batch, sent = packing.select(batch, bisection.pending), 0
    raise last


async def _settle_single(run: EmbedRun, batch: Batch, error: UpstreamError) -> None:
    """Settle the one input of a sync call: its caller gets the provider's answer at once. Raises server faults."""
    if is_server_fault(error):
        raise error
    prober = _BatchProber(run, batch, run.router.candidates(run.alias, run.tenant)[0])
    if not await prober.truncate_further(0, error):
        await prober.fail_input(0, error)


def _error_of_route(run: EmbedRun, batch: Batch, route: Route, error: UpstreamError) -> EmbedmillError:
    """The error to report when a control call with the batch's options fails too."""
    if error.disposition is not Disposition.SPLIT:
        return error
    field = batch.options.sent_to(route.account)
    if field is not None:
        return caller_options_error(field)
    return UpstreamMisconfigured(
        f"the provider {route.provider} refuses every input, also one that is surely good (status {error.status})",
        status=error.status,
        code="upstream_refuses_everything",
        route_fault=True,
        advice=(
            f"Check the key, the address and the settings of providers.{route.provider}, and the upstream model "
            f"{route.upstream_model} of models.{run.alias.name}"
        ),
    )


class _BatchProber:
    """The Prober for one batch on one route."""

    def __init__(self, run: EmbedRun, batch: Batch, route: Route) -> None:
        self._run = run
        self._batch = batch
        self._route = route
        self._state = run.router.state_of(route)
        self._truncations_left = TRUNCATIONS_PER_INPUT * len(batch.inputs) + SPARE_TRUNCATIONS

    async def check_route(self, error: UpstreamError) -> None:
        """Raise RouteFails unless another call or a control call has succeeded since the batch failed."""
        successes = self.success_count()
        async with self._run.checking:
            if self.success_count() > successes:
                return
            for _ in range(2):
                failed = await self.control()
                if failed is None:
                    return
                if failed.disposition is Disposition.SPLIT:
                    break
                await self.pause()
        raise RouteFails(failed or error)

    async def probe(self, positions: Sequence[int]) -> UpstreamError | None:
        return await self._embed(packing.select(self._batch, positions))

    async def _embed(self, batch: Batch) -> UpstreamError | None:
        if self._run.cancel_reason is not None:
            raise self._run.cancel_reason
        # A group is sent to one route, since others would show no more. A single input is given each of them.
        only = self._route if len(batch.inputs) > 1 else None
        try:
            await embed_once(self._run, batch, Attempts(1, shared=True), only)
        except UpstreamError as error:
            if may_be_poisoned(error):
                return error
            raise
        return None

    async def control(self) -> UpstreamError | None:
        if self._run.cancel_reason is not None:
            raise self._run.cancel_reason
        options = replace(self._batch.options, truncate="none")
        batch = control_batch(self._batch.width, options)
        try:
            await call_route(self._run, batch, self._route, self._state, purpose="control_call")
        except UpstreamError as error:
            if may_be_poisoned(error):
                return error
            raise
        self._run.router.record_success(self._route, self._state, 0)
        return None

    async def fail_input(self, position: int, error: UpstreamError) -> bool:
        INPUTS.labels(self._run.lane, "error").inc()
        index = [self._batch.indexes[position]]
        input_error = _input_error(error, self._batch.options)
        self._run.on_outcome(BatchOutcome(index, None, input_error, 0, False, Decimal(0), None))
        return self._run.lane == BULK

    async def truncate_further(self, position: int, error: UpstreamError) -> bool:
        batch = packing.select(self._batch, [position])
        truncations = 0
        while (shorter := shorten_after_refusal.shorter(batch, error, truncations)) is not None:
            if self._truncations_left <= 0:
                raise error
            self._truncations_left, truncations = self._truncations_left - 1, truncations + 1
            failed = await self._embed(shorter)
            if failed is None:
                return True
            batch, error = shorter, failed
        return False

    def success_count(self) -> int:
        return self._state.statistics.successes

    def is_conclusive(self, error: UpstreamError, failures: int) -> bool:
        maximum = MAX_COINCIDENCE_BULK if self._run.lane == BULK else MAX_COINCIDENCE_INTERACTIVE
        return self._state.statistics.is_conclusive(
            failures, refusals=not is_server_fault(error), max_coincidence=maximum
        )

    def record_flakes(self, error: UpstreamError, failures: int) -> None:
        self._state.statistics.record_flakes(failures, refusals=not is_server_fault(error))

    def record_fitting_size(self, positions: Sequence[int], error: UpstreamTooLarge) -> None:
        group = packing.select(self._batch, positions)
        for route in self._run.alias.routes:
            self._run.router.state_of(route).call_size_limits.observe_rejection(group, error.limit)

    def record_max_inputs(self, count: int) -> None:
        self._state.call_size_limits.observe_rejection(packing.select(self._batch, range(count)), "inputs")

    async def pause(self) -> None:
        await asyncio.sleep(random.uniform(0, BACKOFF_S))


def _input_error(error: UpstreamError, options: Options) -> InputError:
    """The outcome of an input at fault."""
    if error.code == "input_too_long":
        return shorten_after_refusal.too_long_error(error, options)
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
    if is_server_fault(error):
        return InputError(
            "upstream_rejected",
            "the provider fails on this input, and on no other: try it again later, or change it",
            True,
        )
    return InputError(
        "upstream_rejected", "the provider refused this input, and takes others: change it, or leave it out"
    )
