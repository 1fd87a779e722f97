"""The fake provider: OpenAI's wire format, answered by a deterministic, scriptable upstream here or over HTTP.

It ships with the product: tests, benches and dry runs use it. `FakeUpstream` is pure as every provider is; time is an
argument, and waiting, hanging up and writing the bill are left to whoever serves it (`engine/upstream/in_process.py`
in process, `cli/fake_upstream/` over HTTP).
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from models.embedding import Batch, Route
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake_calls import over_limits, read_call, unauthorized, unknown_model
from providers.fake_quota import Refusal, SlidingWindow, refusal_message, retry_headers
from providers.fake_replies import JSON_HEADERS, embeddings_body, error_reply, scripted_error, shaped_reply
from providers.fake_script import Action, Decision, FakeScript
from providers.fake_vectors import (
    DIGEST_BYTES,
    fake_digests,
    fake_tokens,
    fake_vectors,
    input_hash,
    vectors_of_digests,
)
from providers.openai import OpenAIProvider

__all__ = [
    "BilledCall",
    "FakeAnswer",
    "FakeProvider",
    "FakeScript",
    "FakeUpstream",
    "fake_tokens",
    "fake_vectors",
    "input_hash",
]

DEFAULT_WIDTH = 1536

_AS_USUAL = Decision()


@dataclass(frozen=True, slots=True)
class BilledCall:
    """What a provider would put on its bill for one call."""

    model: str
    inputs: int
    tokens: int
    digests: bytes = field(repr=False)  # one hash per input: `fake_vectors.DIGEST_BYTES` each

    @property
    def digest(self) -> str:
        """Names the list of inputs, order included: 32 hex characters."""
        return hashlib.blake2b(self.digests, digest_size=16).hexdigest()

    @property
    def input_hashes(self) -> list[str]:
        """One `input_hash` per input."""
        return [self.digests[start : start + 8].hex() for start in range(0, len(self.digests), DIGEST_BYTES)]


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """A reply, and how it is delivered.

    `fault` is None (as it is), "hang" (never), "close" or "reset" (hang up instead) or "truncate" (promise
    `promised_bytes`, send `reply.body`, which is half of them, and hang up).
    """

    reply: UpstreamReply
    delay_s: float = 0.0
    fault: str | None = None
    billed: BilledCall | None = None
    promised_bytes: int = 0
    slow_body_s: float = 0.0  # so much later comes the second half of the body


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
        names_guilty_input: bool = True,
    ) -> None:
        self.script = script or FakeScript()
        self.width = width
        self.models = models  # name → width; None: any model, `width` wide
        self.api_key = api_key
        self.latency_s = latency_ms / 1000
        self.names_guilty_input = names_guilty_input  # False: OpenAI's older message, which makes callers bisect
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
        decision = _AS_USUAL
        if script.rules:
            with self._lock:
                decision = script.decide(inputs, model, total_tokens, now, call.encoding_format)
        delay_s = self.latency_s + decision.delay_s
        action, quota = decision.action, decision.quota
        if decision.refusal:
            return FakeAnswer(_over_quota(decision.refusal, quota, model, total_tokens, now), delay_s)
        if action and action.status not in (None, 200):
            return FakeAnswer(scripted_error(action), delay_s)
        if self.models is not None and model not in self.models:
            return FakeAnswer(unknown_model(model), delay_s)
        width = _width_in(url.query) or (self.models or {}).get(model) or self.width
        refused = over_limits(call, inputs, tokens, width, names_guilty_input=self.names_guilty_input)
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
        reply = shaped_reply(action, headers, rows, model, total_tokens, base64=base64)
        return _spoiled(action, reply, delay_s, billed)


class FakeProvider(OpenAIProvider):
    """OpenAI's wire format towards a fake upstream; the URL names the width, so that one serves all aliases."""

    default_base_url = "inproc://fake/v1"

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """OpenAI's request, with the route's native width in the URL."""
        request = super().request(batch, route)
        return dataclasses.replace(request, url=f"{request.url}?width={route.width}")


def _over_quota(refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float) -> UpstreamReply:
    states_wait = quota is None or quota.rate.states_wait
    headers = (retry_headers(refusal.wait_s) if states_wait else {}) | (quota.headers(now) if quota else {})
    message = refusal_message(refusal, model, tokens, states_wait=states_wait)
    return error_reply(429, message, kind=refusal.kind, code="rate_limit_exceeded", headers=headers)


def _spoiled(action: Action, reply: UpstreamReply, delay_s: float, billed: BilledCall) -> FakeAnswer:
    """The answer as the rule wants it delivered, billed or not."""
    is_billed = action.fault in (None, "truncate") if action.billed is None else action.billed
    promised_bytes = len(reply.body)
    if action.fault == "truncate":
        reply = dataclasses.replace(reply, body=reply.body[: promised_bytes // 2])
    slow_body_s = action.slow_body_ms / 1000
    return FakeAnswer(reply, delay_s, action.fault, billed if is_billed else None, promised_bytes, slow_body_s)


def _width_in(query: str) -> int | None:
    text = parse_qs(query).get("width", [""])[0] if query else ""
    return int(text) if text.isdigit() else None
