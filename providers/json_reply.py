"""Reads 2xx replies of other wire formats than OpenAI's: typed JSON, and vectors in the order of the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from models.embedding import Batch, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.base import rows_from_base64, rows_from_floats

T = TypeVar("T")
Vectors = list[list[float | None]]
"""Vectors as a reply lists them. Some servers write NaN as null (llama.cpp, 2026-08)."""


def decode_reply(
    body: bytes, decoder: msgspec.json.Decoder[T], error_in_success: Callable[[Any], UpstreamError | None]
) -> T:
    """The reply as the decoder's type. Fields that vectors depend on are required in it, all others may be anything.

    `error_in_success` says what a document means that came with a status of success and holds an error; None: it holds
    none. Raises that error, or UpstreamProtocolError.
    """
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        document = _tolerant(body)
    if (error := error_in_success(document)) is not None:
        raise error
    try:
        answer: T = msgspec.convert(document, decoder.type)
        return answer
    except (msgspec.ValidationError, RecursionError):
        raise UpstreamProtocolError(
            "the reply is not an embeddings reply of this provider",
            route_fault=True,
            advice="check base_url, and that the kind of the account is that of the server",
        ) from None


def _tolerant(body: bytes) -> Any:
    """Any JSON, and what careless servers add to it (NaN, a byte order mark). Raises UpstreamProtocolError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        # Damaged JSON may be whole the next time; an HTML page will be the same.
        is_page = body[:1024].lstrip().startswith(b"<")
        raise UpstreamProtocolError(
            "the reply is an HTML page" if is_page else "the reply is not JSON",
            route_fault=is_page,
            advice="check base_url: it leads to a page, not to an embeddings endpoint" if is_page else "",
        ) from None


def float_rows(vectors: Sequence[Sequence[float | None]], batch: Batch, route: Route | None) -> Matrix:
    """One row for each input. Raises UpstreamProtocolError for another count or width. Null becomes NaN."""
    _check_count(len(vectors), batch)
    return rows_from_floats(vectors, batch.width, route)  # type: ignore[arg-type]  # null becomes NaN, which is refused


def base64_rows(texts: Sequence[str], batch: Batch, route: Route | None) -> Matrix:
    """The same for base64 float32 little-endian."""
    _check_count(len(texts), batch)
    return rows_from_base64(texts, batch.width, route)


def header_count(headers: Mapping[str, str], name: str) -> tuple[object, ...]:
    """The count that a header of the reply states, for `plausible_tokens`; nothing where the header is missing."""
    text = headers.get(name, "").strip()
    return () if not text else (int(text),) if text.isdecimal() and len(text) < 16 else (text,)


def _check_count(count: int, batch: Batch) -> None:
    if count != len(batch.inputs):
        raise UpstreamProtocolError(f"the reply holds {count} vectors for {len(batch.inputs)} inputs")
