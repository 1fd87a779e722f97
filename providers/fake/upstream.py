"""The fake upstream: answers embedding calls as a vendor does, deterministically, and breaks them as its script says.

It ships with the product: tests, benches and dry runs use it. `FakeUpstream` is pure as every provider is; time is an
argument, and waiting, hanging up and writing the bill are left to whoever serves it (`engine/upstream/in_process.py` in
process, `embedmill fake-upstream` over HTTP).
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats.format import FakeFormat
from providers.fake.formats.openai import OpenAIFormat
from providers.fake.script import Action, Decision, FakeScript
from providers.fake.vectors import DIGEST_BYTES, fake_digests, fake_tokens, name_of_space, vectors_of_digests

DEFAULT_WIDTH = 1536

_NO_RULE = Decision()


@dataclass(frozen=True, slots=True)
class BilledCall:
    """The line of a provider's bill for one call."""

    model: str
    inputs: int
    tokens: int
    digests: bytes = field(repr=False)  # one hash per input: `vectors.DIGEST_BYTES` each

    @property
    def digest(self) -> str:
        """Identifies the list of inputs, including its order: 32 hex characters."""
        return hashlib.blake2b(self.digests, digest_size=16).hexdigest()

    @property
    def input_hashes(self) -> list[str]:
        """One `input_hash` per input."""
        return [self.digests[start : start + 8].hex() for start in range(0, len(self.digests), DIGEST_BYTES)]


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """A reply, and how it is delivered.

    `fault` is None (deliver it), "hang" (never answer), "close" or "reset" (end the connection instead) or "truncate"
    (announce `promised_bytes`, send `reply.body`, which is half of them, and end the connection).
    """

    reply: UpstreamReply
    delay_s: float = 0.0
    fault: str | None = None
    billed: BilledCall | None = None
    promised_bytes: int = 0
    slow_body_s: float = 0.0  # the second half of the body comes so much later


class FakeUpstream:
    """Answers embedding calls as a vendor does: OpenAI, or that of `wire_format`. Safe to call from several threads."""

    def __init__(
        self,
        script: FakeScript | None = None,
        width: int = DEFAULT_WIDTH,
        *,
        models: Mapping[str, int] | None = None,
        api_key: str | None = None,
        latency_ms: float = 0.0,
        names_offending_input: bool = True,
        wire_format: FakeFormat | None = None,
        space: str | None = None,
    ) -> None:
        self.script = script or FakeScript()
        self.width = width
        self.models = models  # name → width; None: any model, `width` wide
        self.api_key = api_key
        self.latency_s = latency_ms / 1000
        self.wire_format = wire_format or OpenAIFormat(names_offending_input=names_offending_input)
        # Vectors depend on this name in place of the model's: fakes of other vendors, whose models have other names,
        # are of one space with it.
        self.space = space
        self._lock = threading.Lock()

    def answer(self, request: UpstreamRequest, now: float) -> FakeAnswer:
        """Answer one request; `now` is unix seconds. `?width=` in the URL overrides the width of the model."""
        url = urlsplit(request.url)
        wire = self.wire_format
        other = wire.admit(request, url.path, self.api_key)
        if other is not None:
            return FakeAnswer(other)
        call = wire.read(request, url.path)
        if isinstance(call, UpstreamReply):
            return FakeAnswer(call)
        model, inputs = call.model, call.inputs
        tokens = [fake_tokens(item) for item in inputs]
        total_tokens = sum(tokens)
        script = self.script
        decision = _NO_RULE
        if script.rules:
            with self._lock:
                decision = script.decide(inputs, model, total_tokens, now, call.encoding)
        delay_s = self.latency_s + decision.delay_s
        action, quota = decision.action, decision.quota
        if decision.refusal:
            return FakeAnswer(wire.rate_limited(decision.refusal, quota, model, total_tokens, now), delay_s)
        if action and action.status not in (None, 200):
            return FakeAnswer(wire.scripted_error(action), delay_s)
        if self.models is not None and model not in self.models:
            return FakeAnswer(wire.unknown_model(model), delay_s)
        width = _width_in(url.query) or (self.models or {}).get(model) or self.width
        refused = wire.over_limits(call, tokens, width)
        if refused:
            return FakeAnswer(refused, delay_s)
        digests = fake_digests(inputs, name_of_space(self.space or model, is_query=call.is_query))
        rows = wire.rows_of(call, vectors_of_digests(digests, wire.width_of(call, width)))
        billed = BilledCall(model, len(inputs), total_tokens, digests)
        headers = {**wire.headers, **quota.headers(now)} if quota else wire.headers
        if action is None:
            return FakeAnswer(wire.write(call, rows, tokens, headers), delay_s, None, billed)
        return _apply_fault(action, wire.malformed(action, call, rows, tokens, headers), delay_s, billed)


def _apply_fault(action: Action, reply: UpstreamReply, delay_s: float, billed: BilledCall) -> FakeAnswer:
    """The answer with the delivery fault and the billing of the rule."""
    is_billed = action.fault in (None, "truncate") if action.billed is None else action.billed
    promised_bytes = len(reply.body)
    if action.fault == "truncate":
        reply = dataclasses.replace(reply, body=reply.body[: promised_bytes // 2])
    slow_body_s = action.slow_body_ms / 1000
    return FakeAnswer(reply, delay_s, action.fault, billed if is_billed else None, promised_bytes, slow_body_s)


def _width_in(query: str) -> int | None:
    text = parse_qs(query).get("width", [""])[0] if query else ""
    return int(text) if text.isdigit() else None
