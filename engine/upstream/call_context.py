"""Values of one upstream call: what its caller passes, and what becomes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from engine.cancellation import CancellationToken
from engine.ledger.call_cost import usage_kind_of, with_cost
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, MaxWait
from engine.observability.route_metrics import CUT_OFF
from engine.observability.telemetry import WASTED_TOKENS
from engine.route_state.state import RouteState
from models.base import random_id
from models.embedding import Batch, Call, Route
from models.errors import Disposition, EmbedmillError, UpstreamError
from models.usage import UsageKind
from providers.rate_limit_headers import RateLimitHeaders


class CallObserver(Protocol):
    """Learns of each call before it is sent, and counts the calls that are cut off."""

    def sending(self, batch: Batch, route: Route) -> str:
        """The id of a call that is about to be sent. Raises EmbedmillError where no call may start any more."""

    def failed(self, call_id: str, billed: Call | None) -> None:
        """The call brought no result. `billed`: the call with its cost where it was billed, or may have been."""


@dataclass(slots=True)
class CallContext:
    """What a call needs beside its batch and route. Used for one batch, by all calls that are made for it."""

    state: RouteState  # of the route
    deadline: float  # on time.monotonic()
    calls: list[Call]  # calls that were made are appended, whatever became of them
    call_observer: CallObserver | None = None
    interactive: bool = True
    stop: CancellationToken | None = None  # once cancelled, no call starts
    waits: CallWaits | None = None
    max_wait: MaxWait = UNBOUNDED
    purpose: str | None = None  # why the call is made, where its vectors go to nobody: "control_call", "drift_check"
    tenant: str = ""
    needs_confirmation: bool = False  # a 429 to this call starts no cooldown before a control call has met it too


@dataclass(slots=True)
class CallAttempt:
    """One call on its way: filled in while it is sent and its reply is read, and recorded at the end of its block."""

    batch: Batch
    route: Route
    context: CallContext
    started_at: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.perf_counter)  # at its start
    seconds: float = 0.0  # that it took, once it has ended
    id: str = ""
    is_sent: bool = False
    status: int | None = None
    used: int | None = None  # tokens, as reported
    tokens_doubt: str | None = None
    hint: RateLimitHeaders | None = None
    error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Record how the call has ended, also when it is cancelled."""
        self.seconds = time.perf_counter() - self.clock
        if error is None:
            self._record_success()
        else:
            self._record_failure(error)

    def _record_failure(self, error: BaseException) -> None:
        """Record a call that raised: in `calls`, for the observer and in the metrics."""
        self.error = error
        if isinstance(error, UpstreamError) and error.disposition is not Disposition.SPLIT:
            self.context.state.recent_calls.failed(time.monotonic())  # else the inputs are at fault, or nobody is
        observer = self.context.call_observer
        kind = usage_kind_of(error, self.status) if self.is_sent else None
        if self.used is None and isinstance(error, UpstreamError):
            self.used = error.reported_tokens
        # An observer counts calls that were cut off itself, when it writes them down.
        is_cut_off = kind is UsageKind.AMBIGUOUS and not isinstance(error, UpstreamError)
        billed: Call | None = None
        if isinstance(error, UpstreamError) or (kind is not None and not (is_cut_off and observer is not None)):
            call = Call(
                self.route.provider,
                self.route.upstream_model,
                False,
                self.status or getattr(error, "status", None),
                self.started_at,
                time.time(),
                error=error.code if isinstance(error, EmbedmillError) else CUT_OFF,
                inputs=len(self.batch.inputs),
                id=self.id or random_id("call"),
            )
            if kind is not None:
                call = billed = with_cost(call, kind, self.batch, self.route, self.used)
            self.context.calls.append(call)
            self.context.state.metrics.failed(call)
        if observer is not None and self.id and not is_cut_off:
            observer.failed(self.id, billed)

    def _record_success(self) -> None:
        """Record a call that was answered. One with a purpose of ours is in the ledger as wasted."""
        context, route = self.context, self.route
        call = Call(
            route.provider,
            route.upstream_model,
            True,
            self.status,
            self.started_at,
            time.time(),
            inputs=len(self.batch.inputs),
            usage_doubt=self.tokens_doubt,
        )
        if context.purpose is not None:
            call = replace(call, id=self.id or call.id, error=context.purpose)
            call = with_cost(call, UsageKind.WASTED, self.batch, route, self.used)
            WASTED_TOKENS.labels(route.provider, route.upstream_model, context.purpose).inc(call.tokens)
            if context.call_observer is not None:
                context.call_observer.failed(self.id, call)
        context.calls.append(call)
        context.state.metrics.succeeded(self.seconds)
        context.state.recent_calls.answered(time.monotonic(), self.seconds)
