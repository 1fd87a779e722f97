"""Reads 2xx replies of other wire formats than OpenAI's: typed JSON, and vectors in the order of the inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from models.embedding import Batch, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.base import EmbeddingReply, plausible_tokens, rows_from_base64, rows_from_floats

T = TypeVar("T")
Vector = list[float | None] | None
"""A vector as a reply lists it. Some servers write NaN as null (llama.cpp, 2026-08), or null for a whole vector."""
Vectors = list[Vector]


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


def embedding_reply(
    read_rows: Callable[[], Matrix],
    counts: Sequence[object],
    batch: Batch,
    model: object = None,
    truncated: Sequence[int] = (),
) -> EmbeddingReply:
    """What the reply says. `counts` are the token counts that it reports, the better one first.

    Raises UpstreamProtocolError as `read_rows` does, with the tokens that the reply reports, which are billed anyway.
    """
    count = plausible_tokens(counts, batch)
    try:
        rows = read_rows()
    except UpstreamProtocolError as error:
        error.reported_tokens = count.tokens
        raise
    return EmbeddingReply(rows, count.tokens, model if isinstance(model, str) else None, count.doubt, truncated)


def in_order(items: Sequence[T], indexes: Sequence[object], batch: Batch) -> Sequence[T]:
    """The items in the order of the inputs, by their indexes; as they stand where none has an index.

    Raises UpstreamProtocolError for another count, or where the indexes are not each input's exactly once.
    """
    _check_count(len(items), batch)
    if all(index is None for index in indexes):
        return items
    by_index = {index: item for index, item in zip(indexes, items, strict=True) if type(index) is int}
    if by_index.keys() != set(range(len(items))):
        raise UpstreamProtocolError("the reply's indexes are not each input's exactly once")
    return [by_index[position] for position in range(len(items))]


def float_rows(vectors: Sequence[Sequence[float | None] | None], batch: Batch, route: Route | None) -> Matrix:
    """One row for each input. Null in a vector becomes NaN. Raises UpstreamProtocolError for another count or width."""
    _check_count(len(vectors), batch)
    check_presence(vectors)
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


def check_presence(vectors: Sequence[object | None]) -> None:
    """Raise UpstreamProtocolError for a vector that is null, with its position unless several are and all are."""
    if None in vectors:
        is_all = len(vectors) > 1 and not any(vector is not None for vector in vectors)
        raise UpstreamProtocolError(
            "a vector of the reply is null", offending_position=None if is_all else list(vectors).index(None)
        )
