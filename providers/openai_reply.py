"""Reads a 2xx reply in OpenAI's format: one vector for each input, or an error that says what is wrong.

What the vectors do not depend on (model, usage, fields beside them) may be of any JSON type: the vectors are paid for,
and nothing beside them makes them useless. What they depend on (count, order, width, numbers) is never guessed at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import msgspec

from models.embedding import Batch, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.base import EmbeddingReply, in_input_order, plausible_tokens, rows_from_base64, rows_from_floats

Vector = str | memoryview | list[float]


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: Any = None


class _Reply(msgspec.Struct):
    data: list[_Item]
    model: Any = None
    usage: Any = None


class _Parts(NamedTuple):
    """The content of a reply. A vector that is null, or contains null or NaN, is None here."""

    vectors: Sequence[Vector | None]
    indexes: Sequence[object]
    model: object
    usage: object


_REPLY = msgspec.json.Decoder(_Reply)
# Inside a JSON string these quotes would be escaped, so they always open a vector.
_VECTOR = b'"embedding":"'


def read_reply(
    body: bytes, batch: Batch, route: Route | None, error_in_success: Callable[[dict[str, Any]], UpstreamError | None]
) -> EmbeddingReply:
    """The vectors in the batch's order, and the tokens that the reply counts. Raises UpstreamProtocolError.

    `error_in_success` says what an error object means that came with a status of success.
    """
    parts = _typed_parts(body, batch.width) or _tolerant_parts(body, error_in_success)
    count = plausible_tokens(usage_counts(parts.usage), batch)
    try:
        rows = _rows(parts, batch, route)
    except UpstreamProtocolError as error:
        error.reported_tokens = count.tokens
        raise
    model = parts.model if isinstance(parts.model, str) else None
    return EmbeddingReply(rows, count.tokens, model, tokens_doubt=count.doubt)


def _typed_parts(body: bytes, width: int) -> _Parts | None:
    """The fast way, for replies of the documented types; None where the reply must be read slowly."""
    frame, lifted = extract_base64_vectors(body, width)
    try:
        answer = _REPLY.decode(frame)
        if lifted and [item.embedding for item in answer.data] != _markers(len(lifted)):
            # The vectors are not one in each item: such a reply takes the slow way.
            answer, lifted = _REPLY.decode(body), []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    items = answer.data
    indexes = [item.index for item in items]
    if not _has_unique_keys(frame if lifted else body, indexes):
        raise UpstreamProtocolError("the reply says the same key twice")
    vectors: Sequence[Vector] = lifted or [item.embedding for item in items]
    return _Parts(vectors, indexes, answer.model, answer.usage)


def _tolerant_parts(body: bytes, error_in_success: Callable[[dict[str, Any]], UpstreamError | None]) -> _Parts:
    """The slow way: any JSON, and what careless servers add to it (NaN, a byte order mark)."""
    try:
        document = json.loads(body, object_pairs_hook=_unique)
    except _DuplicateKey:
        raise UpstreamProtocolError("the reply says the same key twice") from None
    except (ValueError, RecursionError):
        # Damaged JSON may be whole the next time; an HTML page will be the same.
        is_page = body[:1024].lstrip().startswith(b"<")
        what = "the reply is an HTML page, not" if is_page else "the reply is not"
        raise _no_embeddings(is_page, "base_url leads to a page, not to an embeddings endpoint", what) from None
    data = document.get("data") if isinstance(document, dict) else None
    if isinstance(document, dict) and data is None and (error := error_in_success(document)) is not None:
        raise error
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise _no_embeddings(True, "base_url leads to an endpoint that answers in another form than OpenAI's")
    vectors = [_vector_of(item.get("embedding")) for item in data]
    return _Parts(vectors, [item.get("index") for item in data], document.get("model"), document.get("usage"))


def _vector_of(value: object) -> Vector | None:
    if isinstance(value, str) or value is None:
        return value
    if not isinstance(value, list):
        raise _no_embeddings(True, "the endpoint answers with vectors of another form than OpenAI's")
    kinds = set(map(type, value))
    if kinds <= {int, float}:
        return value
    if kinds <= {int, float, type(None)}:  # llama.cpp writes NaN as null
        return None
    raise _no_embeddings(True, "the endpoint answers with vectors of another form than OpenAI's")


def _no_embeddings(repeats: bool, advice: str, what: str = "the reply is not") -> UpstreamProtocolError:
    return UpstreamProtocolError(
        f"{what} an OpenAI embeddings object", route_fault=repeats, advice=f"check base_url: {advice}"
    )


def _rows(parts: _Parts, batch: Batch, route: Route | None) -> Matrix:
    count = len(parts.vectors)
    if count != len(batch.inputs):
        raise UpstreamProtocolError(f"the reply holds {count} vectors for {len(batch.inputs)} inputs")
    order = _order(parts.indexes)
    if None in parts.vectors:
        missing = [position for position, vector in enumerate(parts.vectors) if vector is None]
        suspect = None if len(missing) == count > 1 else missing[0] if order is None else order[missing[0]]
        raise UpstreamProtocolError(
            "a vector of the reply is null, or has null or NaN in it", offending_position=suspect
        )
    try:
        rows = _decoded(parts.vectors, batch.width, route)
    except UpstreamProtocolError as error:
        if error.offending_position is not None and order is not None:
            error.offending_position = order[error.offending_position]
        raise
    return in_input_order(rows, order, count)


def _decoded(vectors: Sequence[Vector | None], width: int, route: Route | None) -> Matrix:
    """The vectors as rows, in the order of the reply."""
    kinds = set(map(type, vectors))
    if list not in kinds:
        return rows_from_base64(cast("Sequence[str | memoryview]", vectors), width, route)
    if kinds == {list}:
        return rows_from_floats(cast("Sequence[list[float]]", vectors), width, route)
    account = f"providers.{route.account.name}" if route else "the account"
    raise UpstreamProtocolError(
        "the reply mixes base64 and float vectors", route_fault=True, advice=f'set encoding = "float" for {account}'
    )


def _order(values: Sequence[object]) -> Sequence[int] | None:
    """The inputs' positions that the reply names; None where the vectors stand in the order of the inputs.

    An index that is left out, null or of another type is filled in only where all that are there say "as they stand":
    servers that leave out zeros leave out the first index. Raises UpstreamProtocolError where that leaves a choice.
    """
    count = len(values)
    if values == _positions(count):
        return None
    indexes = [_index(value) for value in values]
    if all(index is None or index == position for position, index in enumerate(indexes)):
        return None
    known = [index for index in indexes if index is not None]
    if len(known) != count:
        raise UpstreamProtocolError("some vectors of the reply have an index and some have none")
    if sorted(known) != list(range(count)):
        raise UpstreamProtocolError("the reply's indexes are not each input's exactly once")
    return known


def _index(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return None


def usage_counts(usage: object) -> Sequence[object]:
    """The token counts that the reply reports, the better one first."""
    if usage is None:
        return ()
    if not isinstance(usage, dict):
        return (math.nan,)  # reported, but unusable
    return tuple(usage[name] for name in ("prompt_tokens", "total_tokens") if usage.get(name) is not None)


def extract_base64_vectors(body: bytes, width: int) -> tuple[bytes, list[memoryview]]:
    """Take the base64 vectors out of a reply: the JSON with a numbered marker for each, and the vectors in its order.

    Nine tenths of a reply is base64, which a JSON parser reads byte by byte and this does not read at all. Nothing is
    taken on trust: what is left must be good JSON with the markers where vectors belong, and base64 decoding refuses
    whatever is not of its alphabet, in which no marker could be written. A reply in another layout is left as it is.
    """
    chars = (width * 4 + 2) // 3 * 4
    whole = memoryview(body)
    kept: list[bytes] = []
    vectors: list[memoryview] = []
    at = count = 0
    while (found := body.find(_VECTOR, at)) >= 0:
        start = found + len(_VECTOR)
        end = start + chars
        if body[end : end + 1] != b'"':
            return body, []
        kept.append(body[at:start] + b"#%d" % count)
        vectors.append(whole[start:end])
        count += 1
        at = end
    kept.append(body[at:])
    return b"".join(kept), vectors


def _has_unique_keys(body: bytes, indexes: Sequence[object]) -> bool:
    """False when an object of the reply has a key twice: it is unknown which of the two is meant.

    The parser takes the last without a word. As many keys as values shows that there is none; only where that does not
    hold (keys of another object, escapes, odd white space) the reply is read again, slowly.
    """
    if (
        body.count(b'"index":') == len(indexes) - indexes.count(None)
        and body.count(b'"embedding":') == len(indexes)
        and body.count(b'"data":') == 1
        and b"\\" not in body
    ):
        return True
    try:
        json.loads(body, object_pairs_hook=_unique)
    except _DuplicateKey:
        return False
    except (ValueError, RecursionError):  # the document was read by the other parser, which accepts more
        return True
    return True


class _DuplicateKey(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _DuplicateKey
    return document


@lru_cache(maxsize=32)
def _markers(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]


@lru_cache(maxsize=32)
def _positions(count: int) -> list[int]:
    return list(range(count))
