"""What tests put in the place of the network and of waiting: a wire of fakes, and a loop on which sleeping is free."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Sequence
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, EmbedRun, embed
from engine.limiter.registry import LimiterRegistry
from engine.observability.telemetry import REGISTRY
from engine.planning import packing
from engine.routing.router import Router
from engine.upstream.call import Upstream
from models.embedding import Account, Alias, Input, Limits, Options, Route
from models.errors import UpstreamTimeout, UpstreamUnavailable
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake import BilledCall, FakeScript, FakeUpstream

T = TypeVar("T")
WIDTH = 16
MODEL = "m"

Answering = FakeUpstream | Callable[[UpstreamRequest], UpstreamReply]


class FakeWire:
    """A Transport that answers from fakes, one a host name, and remembers what it was sent and when."""

    def __init__(self, **hosts: Answering) -> None:
        self.hosts = hosts
        self.sent: list[UpstreamRequest] = []
        self.bill: list[BilledCall] = []  # of what the fakes charge for
        self.sent_at: list[float] = []  # on the loop's clock
        self.cancelled = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.closed = False
        self.edit: Callable[[UpstreamReply], UpstreamReply] = lambda reply: reply

    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply:
        self.sent.append(request)
        self.sent_at.append(asyncio.get_running_loop().time())
        host = self.hosts[str(urlsplit(request.url).hostname)]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            return self.edit(await self._reply(host, request, timeout_s))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def _reply(self, host: Answering, request: UpstreamRequest, timeout_s: float) -> UpstreamReply:
        if not isinstance(host, FakeUpstream):
            return host(request)
        answer = host.answer(request, time.time())
        if answer.billed is not None:
            self.bill.append(answer.billed)
        if answer.fault == "hang" or answer.delay_s >= timeout_s:
            await asyncio.sleep(timeout_s)
            raise UpstreamTimeout("the upstream did not finish its reply in time", sent=True)
        await asyncio.sleep(answer.delay_s)
        if answer.fault is not None:
            raise UpstreamUnavailable("the upstream closed the connection without an answer", sent=True)
        return answer.reply

    async def close(self) -> None:
        self.closed = True

    @property
    def billed_tokens(self) -> int:
        return sum(call.tokens for call in self.bill)

    @property
    def inputs_sent(self) -> int:
        return sum(len(orjson.loads(request.body)["input"]) for request in self.sent)

    @property
    def hosts_called(self) -> list[str]:
        return [str(urlsplit(request.url).hostname) for request in self.sent]


def fake(*rules: dict[str, Any], **options: Any) -> FakeUpstream:
    """A fake upstream that plays these rules."""
    return FakeUpstream(FakeScript.parse(list(rules)), width=WIDTH, **options)


TURN_S = 1e-5


class _SkippingSelector(selectors.DefaultSelector):
    """Answers at once. The time to wait is counted instead, and a moment for each turn of the loop."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        # Without the moment, work that waits by turns of the loop would never see a timer come due.
        self.skipped_s += TURN_S + (timeout if timeout is not None and timeout > 0 and not ready else 0.0)
        return ready


class SkippingLoop(asyncio.SelectorEventLoop):
    """Timers are due as soon as nothing else is to do: a sleep of an hour takes no time, and shows on `time()`.

    Nothing else shows there: how busy the machine is changes no result.
    """

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        self._began = time.monotonic()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._began + self._skipping.skipped_s


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end without waiting. For code that uses no threads."""
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        return runner.run(work)


async def time_passes(seconds: float) -> None:
    """On a SkippingLoop, which does not wait for it."""
    await asyncio.sleep(seconds)


def unanswered_calls(provider: str, model: str = MODEL) -> float:
    """What the metric of ambiguous calls has come to in this process."""
    labels = {"provider": provider, "model": model}
    return REGISTRY.get_sample_value("embedmill_ambiguous_calls_total", labels) or 0.0


def route(host: str = "up", *, priority: int = 0, limits: Limits | None = None, **fields: Any) -> Route:
    """A route to `http://<host>/v1` in OpenAI's format."""
    account = Account(host, "openai", f"http://{host}/v1", "sk-secret")
    return Route(
        account, MODEL, WIDTH, limits or Limits(), Decimal("0.02"), accepts_tokens=True, priority=priority, **fields
    )


def alias(*routes: Route, max_input_tokens: int = 8192) -> Alias:
    return Alias("alias", WIDTH, range(1, WIDTH + 1), max_input_tokens, "space", routes, Decimal("0.02"))


def new_run(wire: FakeWire, of: Alias, count: int, *, lane: str = BULK, seconds: float = 60.0) -> EmbedRun:
    """One run of embed() over the wire, gathering everything."""
    limiters = LimiterRegistry()
    upstream = Upstream(wire, [each.account for each in of.routes], limiters, max_reply_bytes=1 << 20)
    return EmbedRun(upstream, Router(limiters), of, lane, time.monotonic() + seconds, OutcomeCollector(count, WIDTH))


async def embed_texts(
    embed_run: EmbedRun,
    inputs: Sequence[Input],
    *,
    options: Options | None = None,
    limits: Limits | None = None,
    concurrency: int = 4,
) -> OutcomeCollector:
    """Pack the inputs, embed them, and return what was gathered."""
    tightest = limits or packing.limits_of(embed_run.alias.routes)
    batches = packing.pack(inputs, range(len(inputs)), tightest, WIDTH, options or Options())
    await embed(embed_run, batches, concurrency=concurrency)
    gathered = embed_run.on_outcome
    assert isinstance(gathered, OutcomeCollector)
    return gathered
