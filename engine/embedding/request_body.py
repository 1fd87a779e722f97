"""The body of POST /v1/embeddings, which a line of a batch file has too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
# Kept in text columns, which cannot hold NUL.
ShortText = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[^\x00]*\Z")]


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings: OpenAI's fields, and ours."""

    model: str
    input: str | list[str | int | list[int]]
    dimensions: Positive | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815  # the wire's spelling
