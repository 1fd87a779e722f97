"""Makes one upstream call: wait for its start, build, send, check and classify it. All calls to providers go here."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import providers
from engine.config.secrets import SecretFiles
from engine.limiter.registry import LimiterRegistry
from engine.limiter.route_limiter import Permit
from engine.observability import failpoints
from engine.process.work_threads import WorkThreads
from engine.route_state.encoding import with_floats
from engine.route_state.state import RouteState
from engine.storage import vectors
from engine.upstream.call_context import CallAttempt, CallContext, CallObserver
from engine.upstream.in_process import SCHEME, InProcessTransport, fit_advice
from engine.upstream.route_batch import batch_for
from models.embedding import Account, Batch, Matrix, Route
from models.errors import (
    DeadlineExceeded,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamUnavailable,
)
from providers.base import EmbeddingReply, Provider, UpstreamReply, UpstreamRequest, check_embedded
from providers.content_encoding import inflated, is_compressed

__all__ = ["CallContext", "CallObserver", "Transport", "Upstream"]

log = logging.getLogger(__name__)

# A longer compressed reply is decompressed beside the event loop: one of this length becomes 4 MiB at the most.
INLINE_COMPRESSED_BYTES = 4096
# A larger interactive call is built, and its reply read, beside the event loop, where other callers wait.
INLINE_INPUTS = 256
INLINE_REPLY_BYTES = 2 * 1024 * 1024
# The log names a route whose token counts are doubted at most once in so long.
DOUBT_EVERY_S = 60.0


class Transport(Protocol):
    """Sends the bytes of a finished request."""

    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply:
        """The whole reply, of any status. Raises UpstreamError."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Embedded(NamedTuple):
    """Rows of the batch's width in its order, and what the provider reports."""

    rows: Matrix
    tokens: int | None  # None: it reports none, or no plausible number
    truncated: Sequence[int] = ()  # positions of inputs that the provider says it has cut


class Upstream:
    """The seam between the engine and all providers: requests go over HTTP, or to code in this process."""

    def __init__(
        self,
        transport: Transport,
        accounts: Iterable[Account],
        limiters: LimiterRegistry,
        *,
        max_reply_bytes: int,
        work: WorkThreads | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock`: unix seconds, with which requests are signed."""
        self._transport = transport
        self._clock = clock
        self._work = work
        by_name = {account.name: account for account in accounts}
        self._in_process = InProcessTransport(list(by_name.values()))
        self.secrets = SecretFiles(by_name.values())
        self._max_reply_bytes = max_reply_bytes
        self._limiters = limiters
        self.in_flight = 0  # calls of this process

    def count_local(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text by the tokenizer of the model in this process. Blocks: not for the event loop."""
        return self._in_process.count(texts)

    async def send(self, request: UpstreamRequest, *, deadline: float, timeout_s: float) -> UpstreamReply:
        """Send a finished request and read the whole reply; any status, 4xx and 5xx too, is a reply.

        `deadline` is on time.monotonic(); `timeout_s` is the bound on this one call. Raises UpstreamTimeout,
        UpstreamUnavailable or UpstreamProtocolError; DeadlineExceeded when no time is left.
        """
        left_s = min(deadline - time.monotonic(), timeout_s)
        if left_s <= 0:
            raise DeadlineExceeded("no time was left for an upstream call: send fewer inputs at once, or send a job")
        max_bytes = min(request.max_reply_bytes_of or self._max_reply_bytes, self._max_reply_bytes)
        if request.url.startswith(SCHEME):
            reply = await self._in_process.send(request, timeout_s=left_s)
            if "content-encoding" not in reply.headers:  # raw floats may look like any compression
                return reply
        else:
            reply = await self._transport.send(request, timeout_s=left_s, max_reply_bytes=max_bytes)
        return await _decompressed(reply, max_bytes) if is_compressed(reply.headers, reply.body) else reply

    async def embed(self, batch: Batch, route: Route, context: CallContext) -> Embedded:
        """Embed one batch on one route.

        Starts when the account's quota allows it, the interactive lane first. Asks for floats where the route gives no
        base64, and calls again when a refused key has changed in its file. Raises UpstreamError or DeadlineExceeded;
        UpstreamRateLimited with `sent` False when the quota lets the call start only after its deadline or `max_wait`.
        """
        encoding = context.state.encoding
        encoded = with_floats(route) if encoding.uses_floats else route
        has_new_key = False
        refused: UpstreamError | None = None  # the error of the call that asked for base64
        while True:
            version = self.secrets.version(route.provider) if route.account.secret_files else 0
            try:
                result = await self._embed_once(batch, encoded, context)
            except UpstreamError as error:
                is_key = isinstance(error, UpstreamAuthFailed) and error.sent and not has_new_key
                if is_key and await self.secrets.has_changed(route.provider, version):
                    has_new_key = True
                    continue
                other = encoding.floats_after(error, encoded, batch) if refused is None else None
                if other is not None:
                    encoded, refused = other, error
                    continue
                if isinstance(refused, UpstreamUnavailable):  # it was not the encoding
                    raise refused from None
                raise
            if refused is not None:
                encoding.floats_answered(route, refused)
            elif not encoding.is_base64_proven:
                encoding.answered(encoded)
            return result

    async def _embed_once(self, batch: Batch, route: Route, context: CallContext) -> Embedded:
        """Make one call. Raises as `embed` does."""
        limiter = context.state.limiter
        if self._limiters.uses_redis:
            self._limiters.refresh_if_due()
        permit = limiter.try_acquire() or await limiter.acquire(
            batch.tokens,
            interactive=context.interactive,
            deadline=context.deadline,
            tenant=context.tenant,
            stop=context.stop,
            waits=context.waits,
            max_wait=context.max_wait,
        )
        provider = providers.PROVIDERS[route.account.kind]
        attempt = CallAttempt(batch, route, context)
        self.in_flight += 1
        context.state.in_flight += 1
        try:
            with attempt:
                if context.stop is not None:  # it may have been cancelled while the call waited for its permit
                    context.stop.raise_if_cancelled()
                return await self._exchange(provider, attempt)
        except UpstreamError as error:
            fit_advice(error, route.account)
            raise
        finally:
            self.in_flight -= 1
            context.state.in_flight -= 1
            _release(permit, attempt)

    async def _exchange(self, provider: Provider, attempt: CallAttempt) -> Embedded:
        """Build and send the request, and read its reply."""
        batch, route, context = attempt.batch, attempt.route, attempt.context
        keyed = await self.secrets.keyed(route) if route.account.secret_files else route
        native, windows = batch_for(batch, route)
        # A worker's event loop serves no other caller: there a thread would only cost.
        work = self._work if context.interactive else None
        is_large = len(batch.inputs) > INLINE_INPUTS or batch.bytes > INLINE_REPLY_BYTES
        if work is not None and is_large:
            request = await work.run(context.tenant, functools.partial(_request, provider, native, keyed, self._clock))
        else:
            request = _request(provider, native, keyed, self._clock)
        exchange = self._start(request, attempt)
        waits = context.waits
        if waits is None or waits.on_sent is None:  # no hang detector: an interactive call
            reply = await exchange
        else:
            async with waits.for_answer(route, batch.tokens, context.state.limiter.learned_timeout):
                reply = await exchange
        _check_status(provider, reply, attempt)
        if work is not None and (is_large or len(reply.body) > INLINE_REPLY_BYTES):
            embedded = await work.run(context.tenant, lambda: provider.parse_reply(reply, native, route))
        else:
            embedded = provider.parse_reply(reply, native, route)
        if windows is not None:
            embedded = embedded._replace(vectors=windows.joined(embedded.vectors), truncated=windows.positions)
        return Embedded(_checked_rows(embedded, attempt), attempt.used, embedded.truncated)

    def _start(self, request: UpstreamRequest, attempt: CallAttempt) -> Coroutine[Any, Any, UpstreamReply]:
        """The exchange that sends the request. Tells the observer of the call first, which may raise."""
        failpoints.hit("before_upstream")
        context, limiter, estimated = attempt.context, attempt.context.state.limiter, attempt.batch.tokens
        if context.call_observer is not None:
            attempt.id = context.call_observer.sending(attempt.batch, attempt.route)
        attempt.is_sent = True
        sending = self.send(request, deadline=context.deadline, timeout_s=limiter.initial_timeout_s(estimated))
        return sending if limiter.learned_timeout.is_known else limiter.with_learned_timeout(sending, estimated)

    async def close(self) -> None:
        """Settle all ended calls, and close the transports."""
        await self._limiters.close()
        self._in_process.close()
        await self._transport.close()


def _request(provider: Provider, batch: Batch, route: Route, clock: Callable[[], float]) -> UpstreamRequest:
    """Build the request, and sign it where the provider wants that. Nothing waits between this and sending."""
    request = provider.request(batch, route)
    if provider.traits.is_signed:
        request = provider.sign(request, route, clock())
    account = route.account
    if account.proxy is None and account.ca_file is None:
        return request
    return replace(request, proxy=account.proxy, ca_file=account.ca_file)


def _check_status(provider: Provider, reply: UpstreamReply, attempt: CallAttempt) -> None:
    """Raise the provider's error for a reply that is not 2xx."""
    attempt.status = reply.status
    attempt.hint = provider.rate_limits(reply)
    if not 200 <= reply.status < 300:
        raise provider.error_from(reply)


def _checked_rows(embedded: EmbeddingReply, attempt: CallAttempt) -> Matrix:
    """The vectors of a reply, cut to the batch's width. Raises UpstreamProtocolError for what no caller may get."""
    batch, route = attempt.batch, attempt.route
    attempt.used, attempt.tokens_doubt = embedded.tokens, embedded.tokens_doubt
    if embedded.tokens_doubt is not None:
        _log_doubt(route, attempt.context.state, embedded.tokens_doubt)
    rows = embedded.vectors
    if rows.shape[1] != batch.width:
        rows = vectors.truncate(rows, batch.width)
    elif route.normalize != "never" and (route.normalize == "always" or batch.width != route.width):
        rows = vectors.normalized(rows)
    check_embedded(embedded, rows, batch, route)
    _check_model_name(route, attempt.context.state, embedded.upstream_model)
    return rows


def _check_model_name(route: Route, state: RouteState, reported: str | None) -> None:
    """Raise UpstreamProtocolError when a route that used to name the requested model names another one.

    Differences in date and owner are no other model. A route that never named the requested model is not judged.
    """
    requested = route.upstream_model
    if reported is None or route.model_name_unchecked or route.expect_model is not None:
        return
    if reported == requested:
        state.is_model_name_confirmed = True
    elif state.is_model_name_confirmed and _normalized_name(reported) != _normalized_name(requested):
        raise UpstreamProtocolError("the reply is by another model than those before", code="upstream_wrong_model")


def _log_doubt(route: Route, state: RouteState, doubt: str) -> None:
    now = time.monotonic()
    if state.next_doubt_log_at > now:
        return
    state.next_doubt_log_at = now + DOUBT_EVERY_S
    log.warning(
        "the usage that provider %s reports for the model %s is not believed, and is estimated: %s", *route.key, doubt
    )


def _release(permit: Permit, attempt: CallAttempt) -> None:
    context = attempt.context
    has_own_options = attempt.batch.options.sent_to(attempt.route.account) is not None
    context.state.limiter.release(
        permit,
        seconds=attempt.seconds,
        estimated=attempt.batch.tokens,
        used=attempt.used,
        error=attempt.error,
        hint=attempt.hint,
        needs_confirmation=context.needs_confirmation or has_own_options,
        is_control=context.purpose is not None,
        tenant=context.tenant,
    )


async def _decompressed(reply: UpstreamReply, max_bytes: int) -> UpstreamReply:
    """The reply with its body decompressed. An error reply whose body cannot be read keeps its status.

    Raises UpstreamProtocolError for a 2xx reply that cannot be read.
    """
    try:
        if len(reply.body) <= INLINE_COMPRESSED_BYTES:
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


def _normalized_name(model: str) -> str:
    """A model's name without its owner and its date."""
    return _DATE.sub("", model.rpartition("/")[2].lower())
