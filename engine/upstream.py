"""One upstream call: wait its turn, build, send, time, check, classify. All that leaves for a provider passes here."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import providers
from engine import failpoints, vectors
from engine.in_process import SCHEME, InProcess
from engine.limiter.lines import Lines
from engine.limiter.waits import Waits
from engine.stop import Stop
from engine.telemetry import AMBIGUOUS_CALLS, UPSTREAM_CALLS, UPSTREAM_SECONDS
from models.base import trace_id
from models.embedding import Account, Batch, Call, Matrix, Route
from models.errors import DeadlineExceeded, UpstreamError, UpstreamProtocolError
from providers.base import UpstreamReply, UpstreamRequest, check_embedded
from providers.quota_hints import QuotaHint


class Transport(Protocol):
    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply: ...

    async def close(self) -> None: ...


class Witness(Protocol):
    """Whoever must know of each call before it is made, and sees to it that one which is cut off is counted."""

    def sending(self, batch: Batch, route: Route) -> str:
        """The id of a call that is about to be sent. Raises EmbedmillError where none may start any more."""

    def failed(self, call_id: str, *, ambiguous: bool) -> None:
        """The call brought no result; an ambiguous one may have been billed all the same."""


class Upstream:
    """The seam between the engine and all providers: requests go over the wire, or to code in this process."""

    def __init__(
        self, wire: Transport, accounts: Iterable[Account], *, max_reply_bytes: int, redis_url: str = ""
    ) -> None:
        self._wire = wire
        known = {account.name: account for account in accounts}
        self._in_process = InProcess(list(known.values()))
        self._max_reply_bytes = max_reply_bytes
        self._lines = Lines(redis_url)
        self.under_way = 0  # calls of this process
        self._metrics: dict[tuple[str, str], _RouteMetrics] = {}
        self._named: set[tuple[str, str]] = set()  # routes whose replies have named the model asked for

    @property
    def quotas_are_shared(self) -> bool:
        """True when all processes keep one book of the quotas, in Redis."""
        return self._lines.shared

    def share_quotas_among(self, processes: int) -> None:
        """Where they keep none: keep to the part of one of so many processes."""
        self._lines.share_among(processes)

    def learned_tokens_per_call(self, routes: Iterable[Route]) -> int | None:
        """What a bulk call may hold under the tightest quota that these routes' replies told; None: they told none."""
        told = [most for route in routes if (most := self._lines.learned_tokens_per_call(route)) is not None]
        return min(told, default=None)

    async def send(self, request: UpstreamRequest, *, deadline: float, timeout_s: float) -> UpstreamReply:
        """Send a finished request and read the whole reply.

        `deadline` is on time.monotonic(); `timeout_s` is the account's own bound on one call. Raises UpstreamTimeout,
        UpstreamUnavailable or UpstreamProtocolError; any status, 4xx and 5xx too, is a reply.
        """
        left_s = min(deadline - time.monotonic(), timeout_s)
        if left_s <= 0:
            raise DeadlineExceeded("no time was left for an upstream call")
        if request.url.startswith(SCHEME):
            return await self._in_process.send(request, timeout_s=left_s)
        most = min(request.most_reply_bytes or self._max_reply_bytes, self._max_reply_bytes)
        return await self._wire.send(request, timeout_s=left_s, max_reply_bytes=most)

    async def embed(
        self,
        batch: Batch,
        route: Route,
        *,
        deadline: float,
        calls: list[Call],
        witness: Witness | None = None,
        interactive: bool = True,
        stop: Stop | None = None,
        waits: Waits | None = None,
    ) -> tuple[Matrix, int | None]:
        """Embed one batch on one route: rows of the wanted width in the batch's order, and tokens as told.

        Starts when the account's quota allows it, the interactive lane first. A call that was made is appended to
        `calls`, whatever became of it. Raises UpstreamError or DeadlineExceeded; where the quota lets it start only
        after the deadline, UpstreamRateLimited before anything was sent. Once `stop` was given no call starts.
        """
        line = self._lines.of(route)
        permit = line.at_once() or await line.enter(
            batch.tokens, interactive=interactive, deadline=deadline, stop=stop, waits=waits
        )
        provider = providers.PROVIDERS[route.account.kind]
        started_at, clock = time.time(), time.perf_counter()
        status: int | None = None
        used: int | None = None
        hint: QuotaHint | None = None
        failure: BaseException | None = None
        call_id = ""
        sent = False
        metrics = self._metrics_of(route)
        self.under_way += 1
        try:
            if stop is not None:  # it may have been given with the permit, which is then given back
                stop.check()
            asked = batch if route.narrowing == "native" else replace(batch, width=route.width)
            request = provider.request(asked, route)
            failpoints.hit("before_upstream")
            if witness is not None:
                call_id = witness.sending(batch, route)
            sent = True
            reply = await self.send(request, deadline=deadline, timeout_s=route.account.timeout_s)
            status = reply.status
            hint = provider.quota(reply)
            if not 200 <= status < 300:
                raise provider.fault(reply)
            embedded = provider.parse(reply, asked)
            used = embedded.tokens
            rows = vectors.cut(embedded.vectors, batch.width)
            check_embedded(embedded, rows, batch, route)
            self._check_name(route, embedded.upstream_model)
        except BaseException as error:
            failure = error
            ambiguous = isinstance(error, UpstreamError) and error.sent and status is None
            if witness is not None and call_id and isinstance(error, UpstreamError | DeadlineExceeded):
                witness.failed(call_id, ambiguous=ambiguous)
            if isinstance(error, UpstreamError):
                calls.append(
                    Call(
                        route.provider,
                        route.upstream_model,
                        False,
                        status or error.status,
                        started_at,
                        time.time(),
                        error=error.code,
                        ambiguous=ambiguous,
                        inputs=len(batch.inputs),
                        id=call_id or trace_id("call"),
                    )
                )
                metrics.failed(error.code)
            # A witness counts the calls that were cut off when it writes them down, and knows which those are.
            is_cut_off = isinstance(error, asyncio.CancelledError) and witness is None and sent and status is None
            if ambiguous or is_cut_off:
                metrics.unanswered()
            raise
        finally:
            self.under_way -= 1
            seconds = time.perf_counter() - clock
            line.leave(permit, seconds=seconds, estimated=batch.tokens, used=used, error=failure, hint=hint)
        calls.append(Call(route.provider, route.upstream_model, True, status, started_at, time.time()))
        metrics.succeeded(seconds)
        return rows, used

    def _check_name(self, route: Route, told: str | None) -> None:
        """A route that names the model asked for, and then another, has changed it. Raises UpstreamProtocolError.

        Dates and owners around the name are no change; and who never names what was asked for tells nothing by it.
        """
        asked, key = route.upstream_model, (route.provider, route.upstream_model)
        if told is None or route.any_model or route.expect_model is not None:
            return
        if told == asked:
            self._named.add(key)
        elif key in self._named and _bare(told) != _bare(asked):
            raise UpstreamProtocolError("the reply is by another model than those before", code="upstream_wrong_model")

    def _metrics_of(self, route: Route) -> _RouteMetrics:
        key = (route.provider, route.upstream_model)
        if key not in self._metrics:
            self._metrics[key] = _RouteMetrics(*key)
        return self._metrics[key]

    async def close(self) -> None:
        await self._lines.close()
        self._in_process.close()
        await self._wire.close()


# A name's date or tag: -2026-11-01, @20240101, :latest.
_DATE = re.compile(r"(?:[-@:.]v?\d{4,}[\d-]*|:latest)$")


def _bare(model: str) -> str:
    """A model's name without its owner and its date."""
    return _DATE.sub("", model.rpartition("/")[2].lower())


class _RouteMetrics:
    """Children of the labelled metrics, looked up once a route and not once a call."""

    def __init__(self, provider: str, model: str) -> None:
        self._labels = (provider, model)
        self._ok = UPSTREAM_CALLS.labels(provider, model, "ok")
        self._seconds = UPSTREAM_SECONDS.labels(provider, model)

    def succeeded(self, seconds: float) -> None:
        self._ok.inc()
        self._seconds.observe(seconds)

    def unanswered(self) -> None:
        AMBIGUOUS_CALLS.labels(*self._labels).inc()

    def failed(self, code: str) -> None:
        UPSTREAM_CALLS.labels(*self._labels, code).inc()
