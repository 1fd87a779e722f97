"""OpenAI's own format: the one that benches use, so that nothing is done twice on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from models.embedding import Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats.format import FakeCall
from providers.fake.rate_limit import Refusal, SlidingWindow, refusal_message, retry_headers
from providers.fake.replies import JSON_HEADERS, embeddings_body, error_reply, malformed_reply, scripted_error
from providers.fake.request import over_limits, read_call, unauthorized, unknown_model
from providers.fake.script import Action


class OpenAIFormat:
    """POST /v1/embeddings."""

    kind = "openai"
    base_path = "/v1"
    headers: Mapping[str, str] = JSON_HEADERS

    def __init__(self, *, names_offending_input: bool = True) -> None:
        self.names_offending_input = names_offending_input  # False: OpenAI's older message, which makes callers bisect

    def admit(self, request: UpstreamRequest, path: str, api_key: str | None) -> UpstreamReply | None:
        """Refuse other paths, other methods and other keys."""
        if not path.endswith("/embeddings"):
            return error_reply(404, f"Invalid URL ({request.method} {path})")
        if request.method != "POST":
            message = f"Not allowed to {request.method} on /v1/embeddings."
            return error_reply(405, message, code="method_not_supported")
        if api_key is not None and request.headers.get("authorization") != f"Bearer {api_key}":
            return unauthorized(request.headers.get("authorization"))
        return None

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """The body's call."""
        call = read_call(request.body)
        if isinstance(call, UpstreamReply):
            return call
        return FakeCall(call.model, call.inputs(), call.dimensions, call.encoding_format, document=call)

    def unknown_model(self, model: str) -> UpstreamReply:
        """OpenAI's 404."""
        return unknown_model(model)

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """OpenAI's limits and messages."""
        return over_limits(call.document, call.inputs, tokens, width, names_offending_input=self.names_offending_input)

    def width_of(self, call: FakeCall, width: int) -> int:
        """The one asked for, else the native one."""
        return call.width or width

    def rows_of(self, call: FakeCall, rows: Matrix) -> Matrix:
        """Unit vectors."""
        return rows

    def write(self, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]) -> UpstreamReply:
        """OpenAI's embeddings object."""
        body = embeddings_body(rows, call.model, sum(tokens), base64=call.encoding == "base64")
        return UpstreamReply(200, headers, body)

    def malformed(
        self, action: Action, call: FakeCall, rows: Matrix, tokens: Sequence[int], headers: Mapping[str, str]
    ) -> UpstreamReply:
        """The object with the defect of the rule."""
        return malformed_reply(action, dict(headers), rows, call.model, sum(tokens), base64=call.encoding == "base64")

    def scripted_error(self, action: Action) -> UpstreamReply:
        """OpenAI's own type, code and message where the rule gives none."""
        return scripted_error(action)

    def rate_limited(
        self, refusal: Refusal, quota: SlidingWindow | None, model: str, tokens: int, now: float
    ) -> UpstreamReply:
        """OpenAI's 429, with its headers."""
        states_wait = quota is None or quota.rate.states_wait
        headers = (retry_headers(refusal.wait_s) if states_wait else {}) | (quota.headers(now) if quota else {})
        message = refusal_message(refusal, model, tokens, states_wait=states_wait)
        return error_reply(429, message, kind=refusal.kind, code="rate_limit_exceeded", headers=headers)
