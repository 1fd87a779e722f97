"""What every provider promises, and the checks that no adapter may skip.

A provider is pure: it turns a batch into an `UpstreamRequest` and an `UpstreamReply` into vectors. It opens no socket,
reads no clock and no environment; sending, timing, retrying and metering live in `engine/`, once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pybase64

from models.embedding import Account, Batch, Limits, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.rate_limit_headers import RateLimitHeaders


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A finished request: the bytes are what is sent, so that they can be signed."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # holds credentials
    body: bytes = field(repr=False)
    # More than an honest answer can be: what is longer is not read to its end. None: as much as the settings allow.
    max_reply_bytes_of: int | None = None
    # The HTTP proxy to send it through; "": none. None: the transport's own. It may hold a credential.
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A whole answer, read to its end. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class EmbeddingReply(NamedTuple):
    """What a reply held: vectors in the batch's order, and the tokens that the provider says it counted."""

    vectors: Matrix
    tokens: int | None  # None: the provider did not say, or nothing that can be believed
    upstream_model: str | None = None
    tokens_doubt: str | None = None  # why what it says of its tokens is not believed


class TokenCount(NamedTuple):
    """Tokens that a reply reports, where they can be right, and why not where they cannot."""

    tokens: int | None = None
    doubt: str | None = None


# What a server may put around a text: begin, end, and an instruction of its own.
TOKENS_AROUND_AN_INPUT = 64

# Beyond any number of an embedding. Floats read from the wrong end scatter over all exponents, and pass it at once.
IMPLAUSIBLE_MAGNITUDE = 1e9


class Provider(Protocol):
    """One wire format."""

    limits: Limits
    accepts_tokens: bool
    default_base_url: str

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """Build the one request that embeds the batch on this route."""

    def parse(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Read a 2xx reply. Raises UpstreamProtocolError for anything that is not exactly one good vector per input.

        `route` gives the names in the advice of errors.
        """

    def fault(self, reply: UpstreamReply) -> UpstreamError:
        """Say what a non-2xx reply means, as an error that carries what to do next."""

    def quota(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """What the reply's headers say about the account's quotas, where they say anything."""


def bearer(account: Account) -> dict[str, str]:
    """JSON headers with the account's bearer token, where it has one."""
    headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
    if account.api_key:
        headers["authorization"] = f"Bearer {account.api_key}"
    return headers


def max_reply_bytes_of(batch: Batch) -> int:
    """The longest honest answer: every number written out with its white space, and room for all that is around."""
    return 1024 * 1024 + len(batch.inputs) * (batch.width * 32 + 1024)


def believed_tokens(counts: Sequence[object], batch: Batch) -> TokenCount:
    """The first of the reported counts that the batch's inputs can have, with the reason where there was none.

    A token is a byte of text at least: more than the inputs' bytes, and what is put around them, is no count of them.
    Zero is what servers that do not count report (LM Studio, 2026-08).
    """
    doubt: str | None = None
    for count in counts:
        if isinstance(count, float) and count.is_integer():
            count = int(count)
        if isinstance(count, bool) or not isinstance(count, int):
            doubt = doubt or "it is not a whole number"
        elif count < 0:
            doubt = doubt or "it is negative"
        elif count > (most := tokens_at_most(batch)):
            doubt = doubt or f"it is more than the {most} that its inputs can have"
        elif count:
            return TokenCount(count)
    return TokenCount(doubt=doubt)


def tokens_at_most(batch: Batch) -> int:
    """More tokens than any tokenizer makes of the batch's inputs."""
    around = TOKENS_AROUND_AN_INPUT * len(batch.inputs)
    if batch.bytes:
        return around + batch.bytes
    return around + sum(
        len(item) if isinstance(item, list) else len(item.encode("utf-8", "surrogatepass")) for item in batch.inputs
    )


def rows_from_base64(texts: Sequence[str | memoryview], width: int, route: Route | None = None) -> Matrix:
    """Decode base64 float32 little-endian vectors into rows of `width`. Raises UpstreamProtocolError otherwise."""
    try:
        parts = [pybase64.b64decode(text, validate=True) for text in texts]
    except ValueError:
        raise UpstreamProtocolError("a vector of the reply is not valid base64") from None
    if set(map(len, parts)) - {width * 4}:
        raise wrong_width([len(part) / 4 for part in parts], width, route)
    return np.frombuffer(b"".join(parts), dtype="<f4").reshape(len(parts), width)


def rows_from_floats(lists: Sequence[Sequence[float]], width: int, route: Route | None = None) -> Matrix:
    """Turn lists of numbers into rows of `width`. Raises UpstreamProtocolError when one has another width."""
    if set(map(len, lists)) - {width}:
        raise wrong_width([len(row) for row in lists], width, route)
    try:
        with np.errstate(over="ignore"):  # an overflow becomes inf, which check_vectors refuses
            return np.array(lists, dtype=np.float32).reshape(len(lists), width)
    except OverflowError:  # a whole number beyond any float
        raise UpstreamProtocolError("a vector of the reply holds a number that is no float") from None


def wrong_width(widths: Sequence[float], width: int, route: Route | None) -> UpstreamProtocolError:
    """The error for vectors of other widths than the one asked for; the route's fault where all have the same one.

    Where one vector alone is of another width, the error names its place in the reply.
    """
    wrong = [position for position, each in enumerate(widths) if each != width]
    actual = widths[wrong[0]]
    message = f"a vector of the reply holds {actual:g} numbers where {width} were asked for"
    if len(set(widths)) > 1:
        return UpstreamProtocolError(message, offending_position=wrong[0] if len(wrong) == 1 else None)
    if math.floor(actual) != actual or actual < 1:
        return UpstreamProtocolError(message)
    model = f"models.{route.alias}" if route and route.alias else "the model"
    if route and width != route.width:
        advice = f'set narrowing = "cut" in the route of {model}, or leave its allowed_dimensions out'
    else:
        advice = f"set dimensions = {actual:g} for {model}"
    return UpstreamProtocolError(message, route_fault=True, advice=advice)


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


def check_embedded(embedded: EmbeddingReply, rows: Matrix, batch: Batch, route: Route) -> None:
    """What the engine asks of every reply, whoever read it. Raises UpstreamProtocolError."""
    try:
        check_vectors(rows, len(batch.inputs), batch.width, zeros=route.account.allow_zero_vectors)
        told = embedded.upstream_model
        if route.expect_model is not None and told is not None and told != route.expect_model:
            raise UpstreamProtocolError(
                "the reply is by another model than the one expected",
                code="upstream_wrong_model",
                advice=f"set expect_model of providers.{route.account.name} to the name that it serves, or to false",
            )
    except UpstreamProtocolError as error:
        error.reported_tokens = embedded.tokens
        raise


def check_vectors(vectors: Matrix, count: int, width: int, *, zeros: bool = False) -> None:
    """The last gate: shape, finite, and not all zero unless `zeros` may pass. Raises UpstreamProtocolError.

    Where a vector cannot be used, the error names the first of them as the suspect, unless it is all of several.
    """
    if vectors.shape != (count, width):
        raise UpstreamProtocolError(
            f"the reply holds vectors of shape {vectors.shape} where {(count, width)} was asked for"
        )
    if count == 0:
        return
    # One pass answers both questions: NaN and inf spread into the squares, and only a zero vector has none. Squares
    # that run over, or vanish, for honest numbers far from 1 are looked at again, exactly.
    with np.errstate(over="ignore", invalid="ignore"):
        if count == 1:  # most sync calls: a third of the time
            square = float(np.dot(vectors[0], vectors[0]))
            if math.isfinite(square) and square:
                return
        else:
            squares = np.einsum("ij,ij->i", vectors, vectors)
            if np.isfinite(squares).all() and squares.all():
                return
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    if not finite.all():
        raise UpstreamProtocolError("a vector of the reply holds NaN or infinity", offending_position=_suspect(finite))
    nonzero = np.asarray(vectors.any(axis=1))
    if not zeros and not nonzero.all():
        raise UpstreamProtocolError("a vector of the reply is all zeros", offending_position=_suspect(nonzero))
    if (
        np.abs(vectors).max() > IMPLAUSIBLE_MAGNITUDE
        and np.abs(swapped := vectors.byteswap())[np.isfinite(swapped)].max() < IMPLAUSIBLE_MAGNITUDE
    ):
        raise UpstreamProtocolError(
            "the vectors of the reply are big-endian",
            route_fault=True,
            advice='set encoding = "float" for the account',
        )


def _suspect(good: npt.NDArray[np.bool_]) -> int | None:
    """The first row that is not good; None where none of several is."""
    return None if len(good) > 1 and not good.any() else int(np.argmin(good))
