"""A row for each vendor: its limits, the names of its fields, and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from providers.fake.formats.vendor_errors import Envelope, VendorErrors, nested

QUERY_WORDS = frozenset(
    {
        "query", "search_query", "retrieval.query", "code.query", "RETRIEVAL_QUERY", "CODE_RETRIEVAL_QUERY",
        "TEXT_RETRIEVAL", "GENERIC_RETRIEVAL",
    }
)  # fmt: skip
"""The vendors' words for queries."""

# A model whose name ends so cannot be narrowed, as OpenAI's ada-002 and models without Matryoshka training cannot.
FIXED = "-fixed"


@dataclass(frozen=True, slots=True)
class Profile:
    """One vendor. A limit of None is none."""

    kind: str
    path: str = r"/embeddings$"  # in the URL's path; a group `model` names the model
    base_path: str = "/v1"  # of the address that clients are given
    key_header: str = "authorization"  # another one holds the key without "Bearer"
    max_inputs: int | None = 2048
    max_input_tokens: int | None = 8192
    max_call_tokens: int | None = None
    call_tokens_of: Mapping[str, int] = field(default_factory=dict)  # by model, where it differs
    max_bytes: int | None = None
    input_field: str = "input"
    takes_text: bool = True  # the input may be a text, not a list
    takes_tokens: bool = False
    embeds_empty: bool = False  # an empty text has a vector
    fields: frozenset[str] | None = None  # all that it knows; None: it ignores what it does not know
    required: tuple[str, ...] = ()
    words: Mapping[str, frozenset[object]] = field(default_factory=dict)  # values that a field takes
    width_field: str | None = "dimensions"
    encoding_field: str | None = "encoding_format"
    purpose_field: str | None = None
    cut_field: str | None = None  # says whether too long inputs are cut
    cut_words: frozenset[object] = frozenset({True, "END", "START", "LEFT", "RIGHT", "end", "start", -1})
    cuts: bool = False  # without the field
    narrowing: Literal["unit", "slice", "ignore"] = "unit"  # slice: narrower vectors are not of unit length
    unit_field: str | None = None  # says whether vectors are of unit length; without it they are not
    usage: Literal["both", "total", "none", "zero", "characters", "mistral", "cost"] = "both"
    has_index: bool = True
    waits_in: Literal["headers", "seconds", "text", "nowhere"] = "headers"  # where a 429 says how long
    errors: VendorErrors = field(default_factory=VendorErrors)
    envelope: Envelope = nested
