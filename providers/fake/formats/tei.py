"""text-embeddings-inference by its native and its OpenAI-like path, and Hugging Face's router, which answers alike.

Oddities: `before_1_9` (413 in place of 422), `cuts` (the server's auto_truncate, the default since 1.9), `no_usage`,
`flat_vector` (the router: one text's vector without a list around it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply, UpstreamRequest
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors

_VALIDATION = "Validation"
_WIDTH = VendorError(
    422, "Input validation error: `dimensions` must be less than or equal to {width}", kind=_VALIDATION
)
TEI = Profile(
    "tei",
    path=r"/(?:embed|v1/embeddings)$",
    base_path="",
    max_inputs=32,
    max_input_tokens=512,
    max_bytes=2_000_000,
    input_field="inputs",
    takes_tokens=True,
    cut_field="truncate",
    unit_field=None,
    has_index=False,
    waits_in="nowhere",
    envelope=envelopes.tei,
    errors=VendorErrors(
        bad_body=VendorError(422, "Failed to deserialize the JSON body", envelope=lambda *_: b"Failed to deserialize"),
        bad_key=VendorError(401, "", envelope=envelopes.empty),
        bad_path=VendorError(404, "", envelope=envelopes.empty),
        bad_value=VendorError(422, "", envelope=lambda *_: b"Failed to deserialize the JSON body into the target type"),
        missing_field=VendorError(422, "", envelope=lambda *_: b"Failed to deserialize the JSON body: missing field"),
        bad_width=_WIDTH,
        fixed_width=_WIDTH,
        empty_input=VendorError(422, "Input validation error: `inputs` cannot be empty", kind=_VALIDATION),
        too_many_inputs=VendorError(422, "batch size {count} > maximum allowed batch size {cap}", kind=_VALIDATION),
        too_long=VendorError(
            422,
            "Input validation error: `inputs` must have less than {cap} tokens. Given: {count}",
            kind=_VALIDATION,
        ),
        too_many_bytes=VendorError(413, "", envelope=lambda *_: b"length limit exceeded"),
        rate_limited=VendorError(429, "Model is overloaded", kind="Overloaded"),
        no_credit=VendorError(402, "", envelope=envelopes.empty),
        failed=VendorError(500, "inference failed", kind="Backend"),
        overloaded=VendorError(503, "Unhealthy", kind="Unhealthy"),
    ),
)
HUGGING_FACE = replace(
    TEI,
    kind="huggingface",
    path=r"/hf-inference/models/(?P<model>.+)/pipeline/feature-extraction$",
    max_bytes=None,
    takes_tokens=False,
    envelope=envelopes.text,
    errors=replace(
        TEI.errors,
        bad_key=VendorError(401, "Invalid username or password."),
        unknown_model=VendorError(404, "Model {model} does not exist"),
        no_credit=VendorError(402, "You have exceeded your monthly included credits."),
    ),
)


class TeiFormat(JsonFormat):
    """POST /embed, and /v1/embeddings; GET /info and /health."""

    def __init__(self, profile: Profile, oddities: frozenset[str] = frozenset()) -> None:
        super().__init__(replace(profile, cuts="cuts" in oddities), oddities)
        is_native = profile.envelope is envelopes.tei
        # The same server at its OpenAI-like path, whose errors have another envelope.
        self._openai = TeiFormat(replace(profile, envelope=envelopes.tei_openai), oddities) if is_native else None

    def admit(self, request: UpstreamRequest, path: str, api_key: str | None) -> UpstreamReply | None:
        """Answer what a client reads at its start; then as any vendor."""
        if path.endswith("/info"):
            return UpstreamReply(200, self.headers, orjson.dumps(self.info()))
        if path.endswith("/health"):
            return UpstreamReply(200, {}, b"")
        return super().admit(request, path, api_key)

    def read(self, request: UpstreamRequest, path: str) -> FakeCall | UpstreamReply:
        """The call, with the errors of its path."""
        if self._openai is not None and path.endswith("/v1/embeddings"):
            return self._openai.read(request, path)
        return super().read(request, path)

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """The server's limits, with the errors of the call's path."""
        if self._openai is not None and call.document:
            return self._openai.over_limits(call, tokens, width)
        return super().over_limits(call, tokens, width)

    def info(self) -> dict[str, object]:
        """The server's limits, as it states them."""
        return {
            "model_id": "fake",
            "model_dtype": "float32",
            "max_concurrent_requests": 512,
            "max_input_length": self.profile.max_input_tokens,
            "max_batch_tokens": 16_384,
            "max_client_batch_size": self.profile.max_inputs,
            "auto_truncate": self.profile.cuts,
            "version": "1.8.0" if "before_1_9" in self.oddities else "1.9.3",
        }

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """Both paths' bodies: `inputs`, or `input`. A server has one model: its name is `m` where a call has none."""
        is_openai = "input" in document
        inputs = self.inputs_of(document.get("input" if is_openai else "inputs"))
        if inputs is None:
            return self.refuse(self.profile.errors.bad_value)
        return self.call(model or str(document.get("model") or "m"), inputs, document, is_openai)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """A bare list of vectors, and the tokens in a header; or OpenAI's object."""
        headers = {} if tokens is None or self.kind != "tei" else {"x-compute-tokens": f"{sum(tokens)}"}
        if call.document:
            data = [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": pybase64.b64encode_as_string(row.data) if call.encoding == "base64" else row,
                }
                for index, row in zip(indexes, rows, strict=True)
            ]
            usage = {"prompt_tokens": sum(tokens or ()), "total_tokens": sum(tokens or ())}
            return {"object": "list", "data": data, "model": call.model, "usage": usage}, headers
        if "flat_vector" in self.oddities and len(rows) == 1:
            return rows[0], headers
        return list(rows), headers

    def refuse(self, error: VendorError, headers: Mapping[str, str] | None = None, **values: object) -> UpstreamReply:
        """The error, with the status that the server's version has for a failed validation."""
        if error.kind == _VALIDATION and "before_1_9" in self.oddities:
            error = replace(error, status=413)
        return super().refuse(error, headers, **values)
