"""One upstream call: wait its turn, build, send, time, check, classify. All that leaves for a provider passes here."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import providers
from engine.cancellation import CancellationToken
from engine.config.secrets import SecretFiles
from engine.ledger.billing import billed, billed_as
from engine.limiter.call_waits import CallWaits
from engine.limiter.max_wait import UNBOUNDED, MaxWait
from engine.limiter.registry import LimiterRegistry
from engine.observability import failpoints
from engine.observability.route_metrics import CUT_OFF, RouteMetrics
from engine.observability.telemetry import WASTED_TOKENS
from engine.process.work_threads import WorkThreads
from engine.storage import vectors
from engine.upstream.encodings import Encodings
from engine.upstream.in_process import SCHEME, InProcessTransport
from models.base import trace_id
from models.embedding import Account, Batch, Call, Matrix, Route
from models.errors import (
    DeadlineExceeded,
    EmbedmillError,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamUnavailable,
)
from models.usage import UsageKind
from providers.base import UpstreamReply, UpstreamRequest, check_embedded
from providers.content_encoding import inflated, is_compressed
from providers.rate_limit_headers import RateLimitHeaders

log = logging.getLogger(__name__)


# A longer reply is inflated beside the event loop: one of this length becomes 4 MiB at the most.
INFLATED_AT_ONCE_BYTES = 4096
# A larger call of the interactive lane is built, and its reply read, beside the event loop: others wait there too.
INLINE_INPUTS = 256
INLINE_REPLY_BYTES = 2 * 1024 * 1024
# A route whose figures are not believed is named in the log once in so long.
DOUBT_EVERY_S = 60.0


class Transport(Protocol):
    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply: ...

    async def close(self) -> None: ...


class CallObserver(Protocol):
    """Whoever must know of each call before it is made, and sees to it that one which is cut off is counted."""

    def sending(self, batch: Batch, route: Route) -> str:
        """The id of a call that is about to be sent. Raises EmbedmillError where none may start any more."""

    def failed(self, call_id: str, *, ambiguous: bool, wasted: bool = False) -> None:
        """The call brought no result; an ambiguous one may have been billed all the same, and a wasted one was."""


class Upstream:
    """The seam between the engine and all providers: requests go over the wire, or to code in this process."""

    def __init__(
        self,
        wire: Transport,
        accounts: Iterable[Account],
        *,
        max_reply_bytes: int,
        redis_url: str = "",
        redis_prefix: str = "",
        work: WorkThreads | None = None,
    ) -> None:
        self._wire = wire
        self._work = work
        known = {account.name: account for account in accounts}
        self._in_process = InProcessTransport(list(known.values()))
        self.secrets = SecretFiles(known.values())
        self._max_reply_bytes = max_reply_bytes
        self._limiters = LimiterRegistry(redis_url, redis_prefix)
        self.under_way = 0  # calls of this process
        self._metrics: dict[tuple[str, str], RouteMetrics] = {}
        self._named: set[tuple[str, str]] = set()  # routes whose replies have named the model asked for
        self._encodings = Encodings()
        self._doubted_until: dict[tuple[str, str], float] = {}  # on time.monotonic()

    def count_local(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, as the model in this process counts them. Not for the event loop."""
        return self._in_process.count(texts)

    @property
    def shares_quotas(self) -> bool:
        """True when all processes keep one book of the quotas, in Redis."""
        return self._limiters.uses_redis

    def split_quotas_among(self, processes: int) -> None:
        """Where they keep none: keep to the part of one of so many processes."""
        self._limiters.split_among(processes)

    def max_learned_call_tokens(self, routes: Iterable[Route]) -> int | None:
        """What a bulk call may hold under the tightest quota that these routes' replies told; None: they told none."""
        told = [most for route in routes if (most := self._limiters.max_learned_call_tokens(route)) is not None]
        return min(told, default=None)

    async def send(self, request: UpstreamRequest, *, deadline: float, timeout_s: float) -> UpstreamReply:
        """Send a finished request and read the whole reply.

        `deadline` is on time.monotonic(); `timeout_s` is the account's own bound on one call. Raises UpstreamTimeout,
        UpstreamUnavailable or UpstreamProtocolError; any status, 4xx and 5xx too, is a reply.
        """
        left_s = min(deadline - time.monotonic(), timeout_s)
        if left_s <= 0:
            raise DeadlineExceeded("no time was left for an upstream call: send fewer inputs at once, or send a job")
        most = min(request.max_reply_bytes_of or self._max_reply_bytes, self._max_reply_bytes)
        if request.url.startswith(SCHEME):
            reply = await self._in_process.send(request, timeout_s=left_s)
            if "content-encoding" not in reply.headers:  # raw floats may look like anything
                return reply
        else:
            reply = await self._wire.send(request, timeout_s=left_s, max_reply_bytes=most)
        return await _plain(reply, most) if is_compressed(reply.headers, reply.body) else reply

    async def embed(
        self,
        batch: Batch,
        route: Route,
        *,
        deadline: float,
        calls: list[Call],
        call_observer: CallObserver | None = None,
        interactive: bool = True,
        stop: CancellationToken | None = None,
        waits: CallWaits | None = None,
        max_wait: MaxWait = UNBOUNDED,
        test: str | None = None,
        tenant: str = "",
        is_doubted: bool = False,
    ) -> tuple[Matrix, int | None]:
        """Embed one batch on one route, with floats where the route gives no base64. As `_embed` otherwise.

        A call whose key is refused is made again when the file of the key has changed.
        """
        encoded = self._encodings.of(route)
        has_new_key = False
        refused: UpstreamError | None = None  # what the call drew when it asked for base64
        while True:
            version = self.secrets.version(route.provider)
            try:
                result = await self._embed(
                    batch,
                    encoded,
                    deadline=deadline,
                    calls=calls,
                    call_observer=call_observer,
                    interactive=interactive,
                    stop=stop,
                    waits=waits,
                    max_wait=max_wait,
                    test=test,
                    tenant=tenant,
                    is_doubted=is_doubted,
                )
            except UpstreamError as error:
                is_key = isinstance(error, UpstreamAuthFailed) and error.sent and not has_new_key
                if is_key and await self.secrets.has_changed(route.provider, version):
                    has_new_key = True
                    continue
                with_floats = self._encodings.floats_after(error, encoded, batch) if refused is None else None
                if with_floats is not None:
                    encoded, refused = with_floats, error
                    continue
                if isinstance(refused, UpstreamUnavailable):  # it was not the encoding
                    raise refused from None
                raise
            if refused is None:
                self._encodings.answered(encoded)
            else:
                self._encodings.floats_answered(route, refused)
            return result

    async def _embed(
        self,
        batch: Batch,
        route: Route,
        *,
        deadline: float,
        calls: list[Call],
        call_observer: CallObserver | None = None,
        interactive: bool = True,
        stop: CancellationToken | None = None,
        waits: CallWaits | None = None,
        max_wait: MaxWait = UNBOUNDED,
        test: str | None = None,
        tenant: str = "",
        is_doubted: bool = False,
    ) -> tuple[Matrix, int | None]:
        """Embed one batch on one route: rows of the wanted width in the batch's order, and tokens as told.

        Starts when the account's quota allows it, the interactive lane first. A call that was made is appended to
        `calls`, whatever became of it; but where a witness is told of each call, it knows those that were cut off.
        `test`: why the call is made, where nobody gets its vectors. `is_doubted`: a 429 shuts no gate by itself, as one
        to options of the caller does not. Raises UpstreamError or DeadlineExceeded; where the
        quota lets it start only after the deadline or the patience, UpstreamRateLimited before anything was sent. Once
        `stop` was given no call starts.
        """
        limiter = self._limiters.for_route(route)
        permit = limiter.try_acquire() or await limiter.acquire(
            batch.tokens,
            interactive=interactive,
            deadline=deadline,
            tenant=tenant,
            stop=stop,
            waits=waits,
            max_wait=max_wait,
        )
        provider = providers.PROVIDERS[route.account.kind]
        started_at, clock = time.time(), time.perf_counter()
        status: int | None = None
        used: int | None = None
        hint: RateLimitHeaders | None = None
        failure: BaseException | None = None
        call_id = ""
        sent = False
        metrics = self._metrics_of(route)
        self.under_way += 1
        try:
            if stop is not None:  # it may have been given with the permit, which is then given back
                stop.raise_if_cancelled()
            asked = batch if route.narrowing == "native" else replace(batch, width=route.width)
            keyed = await self.secrets.keyed(route) if route.account.secret_files else route
            # Where a shard runs there is nobody else on the loop, and a thread would only cost.
            work = self._work if interactive else None
            is_large = len(batch.inputs) > INLINE_INPUTS or batch.bytes > INLINE_REPLY_BYTES
            if work is not None and is_large:
                request = await work.run(tenant, lambda: provider.request(asked, keyed))
            else:
                request = provider.request(asked, keyed)
            if keyed.account.proxy is not None:
                request = replace(request, proxy=keyed.account.proxy)
            failpoints.hit("before_upstream")
            if call_observer is not None:
                call_id = call_observer.sending(batch, route)
            sent = True
            sending = self.send(request, deadline=deadline, timeout_s=limiter.initial_timeout_s(batch.tokens))
            answer = sending if limiter.is_timeout_learned else limiter.with_learned_timeout(sending, batch.tokens)
            if waits is None or waits.on_sent is None:  # nobody watches: an interactive call
                reply = await answer
            else:
                async with waits.for_answer(route, batch.tokens, limiter.latency):
                    reply = await answer
            status = reply.status
            hint = provider.quota(reply)
            if not 200 <= status < 300:
                raise provider.fault(reply)
            if work is not None and (is_large or len(reply.body) > INLINE_REPLY_BYTES):
                embedded = await work.run(tenant, lambda: provider.parse(reply, asked, route))
            else:
                embedded = provider.parse(reply, asked, route)
            used = embedded.tokens
            if embedded.tokens_doubt is not None:
                self._warn_of_doubt(route, embedded.tokens_doubt)
            rows = vectors.cut(embedded.vectors, batch.width)
            check_embedded(embedded, rows, batch, route)
            self._check_name(route, embedded.upstream_model)
        except BaseException as error:
            failure = error
            kind = billed_as(error, status) if sent else None
            if used is None and isinstance(error, UpstreamError):
                used = error.reported_tokens
            # A witness counts the calls that were cut off when it writes them down, and knows which those are.
            is_cut_off = kind is UsageKind.AMBIGUOUS and not isinstance(error, UpstreamError)
            if call_observer is not None and call_id and not is_cut_off:
                call_observer.failed(call_id, ambiguous=kind is UsageKind.AMBIGUOUS, wasted=kind is UsageKind.WASTED)
            if isinstance(error, UpstreamError) or (
                kind is not None and not (is_cut_off and call_observer is not None)
            ):
                call = Call(
                    route.provider,
                    route.upstream_model,
                    False,
                    status or getattr(error, "status", None),
                    started_at,
                    time.time(),
                    error=error.code if isinstance(error, EmbedmillError) else CUT_OFF,
                    inputs=len(batch.inputs),
                    id=call_id or trace_id("call"),
                )
                calls.append(call if kind is None else billed(call, kind, batch, route, used))
                metrics.failed(calls[-1])
            raise
        finally:
            self.under_way -= 1
            seconds = time.perf_counter() - clock
            limiter.release(
                permit,
                seconds=seconds,
                estimated=batch.tokens,
                used=used,
                error=failure,
                hint=hint,
                is_doubted=is_doubted or batch.options.sent_to(route.account) is not None,
                is_ours=test is not None,
                tenant=tenant,
            )
        call = Call(
            route.provider,
            route.upstream_model,
            True,
            status,
            started_at,
            time.time(),
            inputs=len(batch.inputs),
            doubt=embedded.tokens_doubt,
        )
        if test is not None:
            if call_observer is not None:
                call_observer.failed(call_id, ambiguous=False, wasted=True)
            call = billed(replace(call, id=call_id or call.id, error=test), UsageKind.WASTED, batch, route, used)
            WASTED_TOKENS.labels(route.provider, route.upstream_model, test).inc(call.tokens)
        calls.append(call)
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

    def _warn_of_doubt(self, route: Route, doubt: str) -> None:
        key, now = (route.provider, route.upstream_model), time.monotonic()
        if self._doubted_until.get(key, 0.0) <= now:
            self._doubted_until[key] = now + DOUBT_EVERY_S
            log.warning(
                "the usage that provider %s reports for the model %s is not believed, and is estimated: %s", *key, doubt
            )

    def _metrics_of(self, route: Route) -> RouteMetrics:
        key = (route.provider, route.upstream_model)
        if key not in self._metrics:
            self._metrics[key] = RouteMetrics(*key)
        return self._metrics[key]

    async def close(self) -> None:
        await self._limiters.close()
        self._in_process.close()
        await self._wire.close()


async def _plain(reply: UpstreamReply, max_bytes: int) -> UpstreamReply:
    """The reply with its body inflated. An error whose body cannot be read is still the error that its status says."""
    try:
        if len(reply.body) <= INFLATED_AT_ONCE_BYTES:
            body = inflated(reply.headers, reply.body, max_bytes=max_bytes)
        else:
            body = await asyncio.to_thread(inflated, reply.headers, reply.body, max_bytes=max_bytes)
    except UpstreamProtocolError:
        if 200 <= reply.status < 300:
            raise
        body = b""
    return UpstreamReply(reply.status, reply.headers, body)


# A name's date or tag: -2026-11-01, @20240101, :latest.
_DATE = re.compile(r"(?:[-@:.]v?\d{4,}[\d-]*|:latest)$")


def _bare(model: str) -> str:
    """A model's name without its owner and its date."""
    return _DATE.sub("", model.rpartition("/")[2].lower())
