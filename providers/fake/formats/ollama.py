"""Ollama's native API: vectors in the order of the texts, an empty text has none, too large widths are ignored.

Oddities: `no_usage`, `nan_500` and `nan_400` (an input that contains "NaN" fails the whole call, in the words of an
older or a newer server).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.embedding import Matrix
from providers.base import UpstreamReply
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors

OLLAMA = Profile(
    "ollama",
    path=r"/api/embed$",
    base_path="",
    max_inputs=None,
    max_input_tokens=2048,
    required=("model",),
    cut_field="truncate",
    cuts=True,
    narrowing="ignore",
    encoding_field=None,
    has_index=False,
    waits_in="nowhere",
    envelope=envelopes.text,
    errors=VendorErrors(
        bad_body=VendorError(400, "missing request body"),
        bad_key=VendorError(401, "unauthorized"),
        bad_path=VendorError(404, "404 page not found"),
        unknown_model=VendorError(404, 'model "{model}" not found, try pulling it first'),
        missing_field=VendorError(400, "{field} is required"),
        bad_value=VendorError(400, "invalid input type"),
        too_long=VendorError(400, "the input length exceeds the context length"),
        overloaded=VendorError(503, "server busy, please try again.  maximum pending requests exceeded"),
        failed=VendorError(500, "llama runner process has terminated"),
        no_credit=VendorError(402, "the account has no credit"),
        rate_limited=VendorError(429, "too many requests"),
    ),
)
NAN_BEFORE_2026 = VendorError(500, "failed to encode response: json: unsupported value: NaN")
NAN = VendorError(400, "embedding contains NaN or Inf values")


class OllamaFormat(JsonFormat):
    """POST /api/embed."""

    def over_limits(self, call: FakeCall, tokens: Sequence[int], width: int) -> UpstreamReply | None:
        """One input whose vector is no numbers fails the whole call, and is not named."""
        for oddity, error in (("nan_500", NAN_BEFORE_2026), ("nan_400", NAN)):
            if oddity in self.oddities and any(isinstance(item, str) and "NaN" in item for item in call.inputs):
                return self.refuse(error)
        return super().over_limits(call, tokens, width) if call.inputs else None

    def empty(self, index: int | None) -> UpstreamReply | None:
        """Served, without a vector."""
        return None

    def width_of(self, call: FakeCall, width: int) -> int:
        """A width of the native one or more is ignored."""
        return call.width if call.width and call.width < width else width

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`embeddings`, of the inputs that are not empty, and the tokens."""
        vectors = [row for position, row in enumerate(rows) if position >= len(call.inputs) or call.inputs[position]]
        document: dict[str, Any] = {"model": call.model, "embeddings": vectors, "total_duration": 1, "load_duration": 1}
        if tokens is not None:
            document["prompt_eval_count"] = sum(tokens)
        return document, {}
