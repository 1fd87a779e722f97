"""Cohere's embed API, version 2: the input type is required, vectors come by type, and their order is the texts'.

Oddities: `no_usage` leaves `meta` out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply
from providers.fake.formats import vendor_errors as envelopes
from providers.fake.formats.format import FakeCall
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.vendor_errors import VendorError, VendorErrors

INPUT_TYPES = frozenset[object]({"search_document", "search_query", "classification", "clustering", "image"})
V3_TOKENS = 512
COHERE = Profile(
    "cohere",
    path=r"/v2/embed$",
    base_path="",
    max_inputs=96,
    max_input_tokens=128_000,
    max_call_tokens=128_000,
    input_field="texts",
    takes_text=False,
    fields=frozenset(
        {
            "model", "input_type", "texts", "inputs", "images", "embedding_types", "output_dimension", "max_tokens",
            "truncate", "priority",
        }
    ),
    words={"input_type": INPUT_TYPES, "truncate": frozenset({"NONE", "START", "END"})},
    required=("input_type",),
    width_field="output_dimension",
    purpose_field="input_type",
    cut_field="truncate",
    cuts=True,
    has_index=False,
    envelope=envelopes.message_only,
    errors=VendorErrors(
        bad_body=VendorError(400, "invalid request: the body is not JSON"),
        bad_key=VendorError(401, "invalid api token"),
        unknown_model=VendorError(404, "model '{model}' not found, make sure the correct model ID was used"),
        unknown_field=VendorError(422, "unknown field: parameter '{field}' is not valid"),
        missing_field=VendorError(400, "invalid request: valid {field} must be provided with the provided model"),
        bad_value=VendorError(400, "invalid request: valid {field} must be provided with the provided model"),
        bad_width=VendorError(400, "invalid request: output_dimension {value} is not valid"),
        fixed_width=VendorError(400, "invalid request: output_dimension is not supported by the provided model"),
        empty_input=VendorError(
            400, "invalid request: inputs contains an element that is the empty string at index {index}"
        ),
        too_many_inputs=VendorError(
            400, "invalid request: total number of texts must be at most {cap} - received {count}"
        ),
        too_long=VendorError(400, "too many tokens: {count} is more than the {cap} that the model takes"),
        too_many_tokens=VendorError(413, "request body too large"),
        no_credit=VendorError(402, "billing limit reached"),
        rate_limited=VendorError(429, "trial token rate limit exceeded, limit is {cap} {unit} per minute"),
    ),
)  # fmt: skip


class CohereFormat(JsonFormat):
    """POST /v2/embed."""

    def parse(self, document: dict[str, Any], model: str | None) -> FakeCall | UpstreamReply:
        """The texts; base64 where it is among the types."""
        types = document.get("embedding_types")
        if not isinstance(types, list) or not types:
            return self.refuse(self.profile.errors.missing_field, field="embedding_types")
        return super().parse({**document, "encoding_format": "base64" if "base64" in types else "float"}, model)

    def max_input_tokens(self, model: str) -> int | None:
        """512 for the third generation."""
        return V3_TOKENS if model.endswith("-v3.0") else super().max_input_tokens(model)

    def body(
        self, call: FakeCall, rows: Matrix, indexes: Sequence[int | None], tokens: Sequence[int] | None
    ) -> tuple[object, dict[str, str]]:
        """Vectors by type, and the tokens billed."""
        vectors: dict[str, object] = {}
        if "float" in call.document["embedding_types"]:
            vectors["float"] = list(rows)
        if call.encoding == "base64":
            vectors["base64"] = [pybase64.b64encode_as_string(row.data) for row in rows]
        document: dict[str, Any] = {
            "id": "fake",
            "embeddings": vectors,
            "texts": list(call.inputs),
            "response_type": "embeddings_by_type",
        }
        if tokens is not None:
            document["meta"] = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": sum(tokens)}}
        return document, {}
