"""The fake upstream: answers embedding calls as OpenAI does, deterministically, and breaks them as its script says.

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
from providers.fake.rate_limit import Refusal, SlidingWindow, refusal_message, retry_headers
from providers.fake.replies import JSON_HEADERS, embeddings_body, error_reply, malformed_reply, scripted_error
from providers.fake.request import over_limits, read_call, unauthorized, unknown_model
from providers.fake.script import Action, Decision, FakeScript
from providers.fake.vectors import DIGEST_BYTES, fake_digests, fake_tokens, vectors_of_digests

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
    """Answers embedding calls as OpenAI does. Safe to call from several threads."""

    def __init__(
        self,
        script: FakeScript | None = None,
        width: int = DEFAULT_WIDTH,
        *,
        models: Mapping[str, int] | None = None,
        api_key: str | None = None,
        latency_ms: float = 0.0,
        names_offending_input: bool = True,
    ) -> None:
        self.script = script or FakeScript()
        self.width = width
        self.models = models  # name → width; None: any model, `width` wide
        self.api_key = api_key
        self.latency_s = latency_ms / 1000
        self.names_offending_input = names_offending_input  # False: OpenAI's older message, which makes callers bisect
        self._lock = threading.Lock()

    def answer(self, request: UpstreamRequest, now: float) -> FakeAnswer:
        """Answer one request; `now` is unix seconds. `?width=` in the URL overrides the width of the model."""
        url = urlsplit(request.url)
        if not url.path.endswith("/embeddings"):
            return FakeAnswer(error_reply(404, f"Invalid URL ({request.method} {url.path})"))
        if request.method != "POST":
            message = f"Not allowed to {request.method} on /v1/embeddings."
            return FakeAnswer(error_reply(405, message, code="method_not_supported"))
        if self.api_key is not None and request.headers.get("authorization") != f"Bearer {self.api_key}":
            return FakeAnswer(unauthorized(request.headers.get("authorization")))
        call = read_call(request.body)
        if isinstance(call, UpstreamReply):
            return FakeAnswer(call)
        model, inputs = call.model, call.inputs()
        tokens = [fake_tokens(item) for item in inputs]
        total_tokens = sum(tokens)
        script = self.script
        decision = _NO_RULE
        if script.rules:
            with self._lock:
                decision = script.decide(inputs, model, total_tokens, now, call.encoding_format)
        delay_s = self.latency_s + decision.delay_s
        action, quota = decision.action, decision.quota
        if decision.refusal:
            return FakeAnswer(_rate_limited(decision.refusal, quota, model, total_tokens, now), delay_s)
        if action and action.status not in (None, 200):
            return FakeAnswer(scripted_error(action), delay_s)
        if self.models is not None and model not in self.models:
            return FakeAnswer(unknown_model(model), delay_s)
        width = _width_in(url.query) or (self.models or {}).get(model) or self.width
        refused = over_limits(call, inputs, tokens, width, names_offending_input=self.names_offending_input)
        if refused:
            return FakeAnswer(refused, delay_s)
        digests = fake_digests(inputs, model)
        rows = vectors_of_digests(digests, call.dimensions or width)
        billed = BilledCall(model, len(inputs), total_tokens, digests)
        base64 = call.encoding_format == "base64"
        headers = {**JSON_HEADERS, **quota.headers(now)} if quota else JSON_HEADERS
        if action is None:
            body = embeddings_body(rows, model, total_tokens, base64=base64)
            return FakeAnswer(UpstreamReply(200, headers, body), delay_s, None, billed)
        reply = malformed_reply(action, headers, rows, model, total_tokens, base64=base64)
        return _apply_fault(action, reply, delay_s, billed)


def _rate_limited(refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float) -> UpstreamReply:
    states_wait = quota is None or quota.rate.states_wait
    headers = (retry_headers(refusal.wait_s) if states_wait else {}) | (quota.headers(now) if quota else {})
    message = refusal_message(refusal, model, tokens, states_wait=states_wait)
    return error_reply(429, message, kind=refusal.kind, code="rate_limit_exceeded", headers=headers)


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
