"""Nomic Atlas: vectors in the order of the texts. Oddities: `no_usage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.embedding import Matrix
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors

_FINDING = VendorError(422, "Input should be …", kind="enum", param="{field}", envelope=envelopes.finding)
NOMIC = Profile(
    "nomic",
    path=r"/v1/embedding/text$",
    base_path="",
    max_inputs=400,
    input_field="texts",
    takes_text=False,
    fields=frozenset({"texts", "model", "task_type", "dimensionality", "long_text_mode"}),
    words={
        "task_type": frozenset({"search_document", "search_query", "classification", "clustering"}),
        "long_text_mode": frozenset({"truncate", "mean"}),
    },
    required=("texts", "model"),
    width_field="dimensionality",
    encoding_field=None,
    purpose_field="task_type",
    cuts=True,
    has_index=False,
    waits_in="nowhere",
    envelope=envelopes.detail,
    errors=VendorErrors(
        bad_key=VendorError(401, "Invalid API key"),
        unknown_model=VendorError(400, "Invalid model: {model}"),
        unknown_field=VendorError(
            422, "Extra inputs are not permitted", None, "extra_forbidden", "{field}", envelopes.finding
        ),
        missing_field=VendorError(422, "Field required", None, "missing", "{field}", envelopes.finding),
        bad_value=_FINDING,
        bad_width=VendorError(422, "Input should be …", None, "enum", "dimensionality", envelopes.finding),
        fixed_width=VendorError(422, "Input should be …", None, "enum", "dimensionality", envelopes.finding),
        empty_input=VendorError(
            422, "String should have at least 1 character", None, "string_too_short", "texts.{index}", envelopes.finding
        ),
        too_many_inputs=VendorError(
            422, "List should have at most {cap} items", None, "too_long", "texts", envelopes.finding
        ),
        no_credit=VendorError(402, "The account has no credit left."),
        rate_limited=VendorError(429, "Rate limit exceeded"),
    ),
)


class NomicFormat(JsonFormat):
    """POST /v1/embedding/text."""

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """`embeddings`, the usage and the model."""
        document: dict[str, Any] = {"embeddings": list(rows), "model": call.model}
        if tokens is not None:
            document["usage"] = {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
        return document, {}
