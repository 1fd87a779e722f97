"""What every provider promises, and the checks that no adapter may skip.

A provider is pure: it turns a batch into an `UpstreamRequest` and an `UpstreamReply` into vectors. It opens no socket,
reads no clock and no environment; sending, timing, retrying and metering live in `engine/`, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pybase64

from models.embedding import Account, Batch, Limits, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.quota_hints import QuotaHint


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A finished request: the bytes are what is sent, so that they can be signed."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # holds credentials
    body: bytes = field(repr=False)
    # More than an honest answer can be: what is longer is not read to its end. None: as much as the settings allow.
    most_reply_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A whole answer, read to its end. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a reply held: vectors in the batch's order, and the tokens that the provider says it counted."""

    vectors: Matrix
    tokens: int | None  # None: the provider did not say
    upstream_model: str | None = None


# Beyond any number of an embedding. Floats read from the wrong end scatter over all exponents, and pass it at once.
HUGE = 1e9


class Provider(Protocol):
    """One wire format."""

    limits: Limits
    accepts_tokens: bool
    default_base_url: str

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """Build the one request that embeds the batch on this route."""

    def parse(self, reply: UpstreamReply, batch: Batch) -> Embedded:
        """Read a 2xx reply. Raises UpstreamProtocolError for anything that is not exactly one good vector per input."""

    def fault(self, reply: UpstreamReply) -> UpstreamError:
        """Say what a non-2xx reply means, as an error that carries what to do next."""

    def quota(self, reply: UpstreamReply) -> QuotaHint | None:
        """What the reply's headers say about the account's quotas, where they say anything."""


def bearer(account: Account) -> dict[str, str]:
    """JSON headers with the account's bearer token, where it has one."""
    headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
    if account.api_key:
        headers["authorization"] = f"Bearer {account.api_key}"
    return headers


def most_reply_bytes(batch: Batch) -> int:
    """The longest honest answer: every number written out with its white space, and room for all that is around."""
    return 1024 * 1024 + len(batch.inputs) * (batch.width * 32 + 1024)


def rows_from_base64(texts: Sequence[str | memoryview], width: int) -> Matrix:
    """Decode base64 float32 little-endian vectors into rows of `width`. Raises UpstreamProtocolError otherwise."""
    try:
        parts = [pybase64.b64decode(text, validate=True) for text in texts]
    except ValueError as error:
        raise UpstreamProtocolError("a vector of the reply is not valid base64") from error
    wanted = width * 4
    for part in parts:
        if len(part) != wanted:
            raise UpstreamProtocolError(
                f"a vector of the reply holds {len(part) / 4:g} numbers where {width} were asked for"
            )
    return np.frombuffer(b"".join(parts), dtype="<f4").reshape(len(parts), width)


def rows_from_floats(lists: Sequence[Sequence[float]], width: int) -> Matrix:
    """Turn lists of numbers into rows of `width`. Raises UpstreamProtocolError when one has another width."""
    for row in lists:
        if len(row) != width:
            raise UpstreamProtocolError(f"a vector of the reply holds {len(row)} numbers where {width} were asked for")
    with np.errstate(over="ignore"):  # an overflow becomes inf, which check_vectors refuses
        return np.array(lists, dtype=np.float32).reshape(len(lists), width)


def in_input_order(vectors: Matrix, indexes: Sequence[int] | None, count: int) -> Matrix:
    """Put a shuffled but complete reply right. Raises UpstreamProtocolError for a missing, double or foreign index."""
    if len(vectors) != count:
        raise UpstreamProtocolError(f"the reply holds {len(vectors)} vectors for {count} inputs")
    if indexes is None or list(indexes) == list(range(count)):
        return vectors
    if sorted(indexes) != list(range(count)):
        raise UpstreamProtocolError("the reply's indexes are not each input's exactly once")
    ordered = np.empty_like(vectors)
    ordered[np.asarray(indexes)] = vectors
    return ordered


def check_embedded(embedded: Embedded, rows: Matrix, batch: Batch, route: Route) -> None:
    """What the engine asks of every reply, whoever read it. Raises UpstreamProtocolError."""
    check_vectors(rows, len(batch.inputs), batch.width, zeros=route.account.allow_zero_vectors)
    told = embedded.upstream_model
    if route.expect_model is not None and told is not None and told != route.expect_model:
        raise UpstreamProtocolError("the reply is by another model than the one expected", code="upstream_wrong_model")


def check_vectors(vectors: Matrix, count: int, width: int, *, zeros: bool = False) -> None:
    """The last gate: shape, finite, and not all zero unless `zeros` may pass. Raises UpstreamProtocolError."""
    if vectors.shape != (count, width):
        raise UpstreamProtocolError(
            f"the reply holds vectors of shape {vectors.shape} where {(count, width)} was asked for"
        )
    if count == 0:
        return
    # One pass answers both questions: NaN and inf spread into the squares, and only a zero vector has none. Squares
    # that run over, or vanish, for honest numbers far from 1 are looked at again, exactly.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    if np.isfinite(squares).all() and squares.all():
        return
    if not np.isfinite(vectors).all():
        raise UpstreamProtocolError("a vector of the reply holds NaN or infinity")
    if not zeros and not vectors.any(axis=1).all():
        raise UpstreamProtocolError("a vector of the reply is all zeros")
    if np.abs(vectors).max() > HUGE and np.abs(swapped := vectors.byteswap())[np.isfinite(swapped)].max() < HUGE:
        raise UpstreamProtocolError("the vectors of the reply are big-endian")
