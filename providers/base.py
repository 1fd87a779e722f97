"""The Provider protocol, and the checks that no adapter may skip.

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

from models.embedding import Batch, Matrix, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.rate_limit_headers import RateLimitHeaders
from providers.traits import Traits


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A finished request: the bytes are what is sent, so that they can be signed."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)  # holds credentials
    body: bytes = field(repr=False)
    # An upper bound of a valid reply: a longer one is not read to its end. None: the bound of the settings.
    max_reply_bytes_of: int | None = None
    # URL of the HTTP proxy; "": none. None: the transport's own. It may hold a credential.
    proxy: str | None = field(default=None, repr=False)
    without_headers: frozenset[str] = frozenset()  # that the transport must not add by itself
    ca_file: str | None = None  # PEM file of the certificates to trust; None: the system's


@dataclass(frozen=True, slots=True)
class UpstreamReply:
    """A whole reply, read to its end. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class EmbeddingReply(NamedTuple):
    """The content of a reply: vectors in the batch's order, and the tokens that the provider reports."""

    vectors: Matrix
    tokens: int | None  # None: the provider reported none, or no plausible number
    upstream_model: str | None = None
    tokens_doubt: str | None = None  # why the reported tokens are not plausible
    truncated: Sequence[int] = ()  # positions of the inputs that the provider says it has cut


class TokenCount(NamedTuple):
    """Tokens that a reply reports, if plausible; else the reason why they are not."""

    tokens: int | None = None
    doubt: str | None = None


# Tokens that a server may add to a text: begin, end, and an instruction of its own.
TOKENS_AROUND_AN_INPUT = 64

# Larger than any number of an embedding. Floats read in the wrong byte order have random exponents, and exceed it.
IMPLAUSIBLE_MAGNITUDE = 1e9


class Provider(Protocol):
    """One wire format."""

    traits: Traits

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """Build the one request that embeds the batch on this route."""

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Read a 2xx reply. Raises UpstreamProtocolError for anything that is not exactly one good vector per input.

        `route` gives the names in the advice of errors.
        """

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """The error of a non-2xx reply; its class carries the disposition."""

    def rate_limits(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """The account's quotas as the reply's headers state them; None where they state none."""

    def traits_of(self, upstream_model: str) -> Traits:
        """The traits of calls to this model: those of the kind, unless its models differ."""
        return self.traits

    def sign(self, request: UpstreamRequest, route: Route, now_s: float) -> UpstreamRequest:
        """The finished request with its signature. Called where `traits.is_signed`; `now_s` is in unix seconds."""
        return request


def max_reply_bytes_of(batch: Batch) -> int:
    """Upper bound of a valid reply: every number written out with white space, and room for the other fields."""
    return 1024 * 1024 + len(batch.inputs) * (batch.width * 32 + 1024)


def plausible_tokens(counts: Sequence[object], batch: Batch) -> TokenCount:
    """The first plausible of the reported counts; else the reason why none is plausible.

    A token has at least one byte: a count above the inputs' bytes, plus what a server adds, cannot be right. Servers
    that do not count report 0 (LM Studio, 2026-08).
    """
    doubt: str | None = None
    for count in counts:
        if isinstance(count, float) and count.is_integer():
            count = int(count)
        if isinstance(count, bool) or not isinstance(count, int):
            doubt = doubt or "it is not a whole number"
        elif count < 0:
            doubt = doubt or "it is negative"
        elif count > (maximum := max_tokens_of(batch)):
            doubt = doubt or f"it is more than the {maximum} that its inputs can have"
        elif count:
            return TokenCount(count)
    return TokenCount(doubt=doubt)


def max_tokens_of(batch: Batch) -> int:
    """Upper bound of the tokens that any tokenizer makes of the batch's inputs."""
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
    """The error for vectors of another width than the requested one; the route's fault where all have the same width.

    Where only one vector has another width, the error gives its position.
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
    """Sort a shuffled but complete reply. Raises UpstreamProtocolError for a missing, repeated or unknown index."""
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
    """Check a reply, whichever adapter has read it. Raises UpstreamProtocolError."""
    try:
        check_vectors(rows, len(batch.inputs), batch.width, zeros=route.account.allow_zero_vectors)
        reported = embedded.upstream_model
        if route.expect_model is not None and reported is not None and reported != route.expect_model:
            raise UpstreamProtocolError(
                "the reply is by another model than the one expected",
                code="upstream_wrong_model",
                advice=f"set expect_model of providers.{route.account.name} to the name that it serves, or to false",
            )
    except UpstreamProtocolError as error:
        error.reported_tokens = embedded.tokens
        raise


def check_vectors(vectors: Matrix, count: int, width: int, *, zeros: bool = False) -> None:
    """Check shape, finiteness, and that no vector is all zeros unless `zeros`. Raises UpstreamProtocolError.

    The error gives the position of the first bad vector, unless all of several are bad.
    """
    if vectors.shape != (count, width):
        raise UpstreamProtocolError(
            f"the reply holds vectors of shape {vectors.shape} where {(count, width)} was asked for"
        )
    if count == 0:
        return
    # One pass answers both questions: NaN and inf spread into the sum of squares, and only a zero vector has the sum 0.
    # Sums that overflow or underflow for valid numbers far from 1 are checked again, exactly.
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
    """The first row that is not good; None where several rows are all bad."""
    return None if len(good) > 1 and not good.any() else int(np.argmin(good))
