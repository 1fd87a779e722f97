"""The contract that every adapter passes: exactly one good vector an input, or an error that says what to do next.

A reply goes through `parse` and then through `check_vectors`, as `engine/upstream/call.py` puts every reply through.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pybase64
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.embedding import Account, Batch, Matrix, Options, Route
from models.errors import (
    Disposition,
    EmbeddingsUnsupported,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers import PROVIDERS
from providers.base import EmbeddingReply, UpstreamReply, check_embedded, check_vectors, in_input_order
from providers.fake.formats import FAKE_KINDS
from tests.contract.dialects import DIALECTS, SECRET, Dialect
from tests.contract.provider_matrix import OBSERVED, Observe

WIDTH = 6
TEXTS = ["red", "green", "blue"]
MEANS: dict[int, tuple[type[UpstreamError], Disposition]] = {
    400: (UpstreamRejected, Disposition.SPLIT),
    401: (UpstreamAuthFailed, Disposition.FAILOVER),
    403: (UpstreamAuthFailed, Disposition.FAILOVER),
    404: (UpstreamMisconfigured, Disposition.FAILOVER),
    413: (UpstreamTooLarge, Disposition.SPLIT),
    429: (UpstreamRateLimited, Disposition.RETRY),
    500: (UpstreamUnavailable, Disposition.RETRY),
    501: (EmbeddingsUnsupported, Disposition.FAILOVER),
    503: (UpstreamOverloaded, Disposition.RETRY),
}
ERRORS = [(dialect, status) for dialect in DIALECTS for status in dialect.errors]

each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
each_with_indexes = pytest.mark.parametrize(
    "dialect", [dialect for dialect in DIALECTS if dialect.has_indexes], ids=lambda dialect: dialect.name
)
# Vectors as bytes: they have an order of bytes, and a number may be cut in two.
each_with_bytes = pytest.mark.parametrize(
    "dialect", [dialect for dialect in DIALECTS if dialect.has_bytes], ids=lambda dialect: dialect.name
)
FIRST = {dialect.kind: dialect for dialect in reversed(DIALECTS)}
WRONG_COUNTS = [(dialect, count) for dialect in DIALECTS for count in ([0, 1, 2, 4] if dialect.inputs == 3 else [0])]
KINDS = sorted(kind for kind, provider in PROVIDERS.items() if provider.traits.can_embed)
each_kind = pytest.mark.parametrize("kind", KINDS)
# The model in this process has no address that could be wrong.
each_remote_kind = pytest.mark.parametrize("kind", sorted(set(KINDS) - {"local"}))


def vectors(count: int = len(TEXTS), width: int = WIDTH) -> Matrix:
    return np.random.default_rng(7).standard_normal((count, width)).astype(np.float32)


def batch(texts: list[str] = TEXTS, width: int = WIDTH) -> Batch:
    return Batch(texts, range(len(texts)), 3, width, Options())


def batch_of(dialect: Dialect) -> Batch:
    return batch(TEXTS[: dialect.inputs])


def route(kind: str) -> Route:
    model = FIRST[kind].model
    traits = PROVIDERS[kind].traits_of(model)
    account = Account("acme", kind, "https://api.acme.test/v9", SECRET)
    return Route(account, model, WIDTH, traits.limits, Decimal(1), accepts_tokens=traits.accepts_tokens)


def read(dialect: Dialect, reply: UpstreamReply, asked: Batch | None = None, by: Route | None = None) -> EmbeddingReply:
    asked = asked or batch_of(dialect)
    embedded = PROVIDERS[dialect.kind].parse_reply(reply, asked)
    check_embedded(embedded, embedded.vectors, asked, by or route(dialect.kind))
    return embedded


def test_every_provider_has_a_dialect() -> None:
    assert {dialect.kind for dialect in DIALECTS} == set(KINDS)


@pytest.mark.provider_column("sync")
@each_dialect
def test_a_good_reply_is_its_vectors_to_the_bit(dialect: Dialect, record_property: Observe) -> None:
    rows = vectors(dialect.inputs)
    embedded = read(dialect, dialect.say(rows, range(dialect.inputs)))
    assert embedded.vectors.tobytes() == dialect.read_as(rows).tobytes()
    assert embedded.vectors.dtype == np.float32 and embedded.tokens == dialect.tokens
    if dialect.kind not in FAKE_KINDS:  # else the fake's replies show it
        record_property(OBSERVED + "usage", "estimated" if embedded.tokens is None else "tokens")


@pytest.mark.provider_column("sync")
@pytest.mark.fault(32)
@each_with_indexes
def test_a_shuffled_reply_is_put_right(dialect: Dialect) -> None:
    order = [2, 0, 1]
    embedded = read(dialect, dialect.say(vectors()[order], order))
    assert embedded.vectors.tobytes() == dialect.read_as(vectors()).tobytes()


@pytest.mark.provider_column("sync")
@pytest.mark.fault(32)
@each_with_indexes
@pytest.mark.parametrize(
    "indexes", [[0, 0, 2], [0, 1, 3], [1, 2, 3], [-1, 0, 1], [0, 1, 2**70]], ids=["doubled", *"abcd"]
)
def test_each_index_exactly_once(dialect: Dialect, indexes: list[int]) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(vectors(), indexes))


@pytest.mark.provider_column("sync")
@pytest.mark.fault(32)
@pytest.mark.parametrize(("dialect", "count"), WRONG_COUNTS, ids=lambda each: getattr(each, "name", each))
def test_neither_short_nor_long(dialect: Dialect, count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(vectors(count), range(count)))


@pytest.mark.provider_column("sync")
@pytest.mark.fault(33)
@each_dialect
@pytest.mark.parametrize("width", [0, WIDTH - 1, WIDTH + 1, WIDTH * 2])
def test_the_width_that_was_asked_for(dialect: Dialect, width: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(vectors(dialect.inputs, width), range(dialect.inputs)))


@pytest.mark.provider_column("usage")
@pytest.mark.parametrize(
    "dialect",
    [dialect for dialect in DIALECTS if dialect.is_remote and dialect.tokens is not None],
    ids=lambda dialect: dialect.name,
)
def test_a_refused_reply_keeps_its_tokens_which_are_billed(dialect: Dialect) -> None:
    with pytest.raises(UpstreamProtocolError) as refused:
        read(dialect, dialect.say(vectors(dialect.inputs, WIDTH + 1), range(dialect.inputs)))
    assert refused.value.reported_tokens == dialect.tokens


@pytest.mark.provider_column("sync")
@pytest.mark.fault(33)
@each_dialect
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_only_finite_numbers(dialect: Dialect, wrong: float) -> None:
    spoiled = vectors(dialect.inputs)
    spoiled[dialect.inputs // 2, 2] = wrong
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(spoiled, range(dialect.inputs)))


@pytest.mark.provider_column("sync")
@pytest.mark.fault(33)
@each_dialect
def test_no_zero_vector(dialect: Dialect) -> None:
    spoiled = vectors(dialect.inputs)
    spoiled[-1] = 0.0
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(spoiled, range(dialect.inputs)))


@pytest.mark.fault(34)
@each_dialect
def test_a_zero_vector_where_the_account_allows_it(dialect: Dialect) -> None:
    spoiled, indexes = vectors(dialect.inputs), range(dialect.inputs)
    spoiled[-1] = 0.0
    usual = route(dialect.kind)
    allowing = replace(usual, account=replace(usual.account, allow_zero_vectors=True))
    embedded = read(dialect, dialect.say(spoiled, indexes), by=allowing)
    assert embedded.vectors.tobytes() == dialect.read_as(spoiled).tobytes()
    spoiled[dialect.inputs // 2, 1] = np.nan
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(spoiled, indexes), by=allowing)


@each_dialect
def test_the_model_expected_where_the_reply_names_one(dialect: Dialect) -> None:
    reply = dialect.say(vectors(dialect.inputs), range(dialect.inputs))
    usual = route(dialect.kind)
    for expected in (None, "m"):
        read(dialect, reply, by=replace(usual, expect_model=expected))
    if dialect.has_indexes if dialect.names_model is None else dialect.names_model:
        with pytest.raises(UpstreamProtocolError) as refused:
            read(dialect, reply, by=replace(usual, expect_model="m-2026-11"))
        assert refused.value.code == "upstream_wrong_model"
    else:
        read(dialect, reply, by=replace(usual, expect_model="m-2026-11"))


@each_with_bytes
def test_big_endian_vectors_are_recognized(dialect: Dialect) -> None:
    wide = np.random.default_rng(7).standard_normal((3, 64)).astype(np.float32)
    with pytest.raises(UpstreamProtocolError):
        read(dialect, dialect.say(wide.byteswap(), range(3)), replace(batch(), width=64))


@each_with_bytes
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_vector_with_a_part_of_a_number(dialect: Dialect, missing: int) -> None:
    """The last vector lacks some bytes of its last number; in JSON, its base64 is valid."""
    whole = dialect.say(vectors(), range(3))
    last = vectors()[2].tobytes()
    if dialect.name == "local":
        body = whole.body[:-missing]
    else:
        body = whole.body.replace(pybase64.b64encode(last), pybase64.b64encode(last[:-missing]))
    assert body != whole.body
    with pytest.raises(UpstreamProtocolError):
        read(dialect, UpstreamReply(200, whole.headers, body))


@each_dialect
@pytest.mark.parametrize("status", [200, 201, 204])
def test_a_success_without_a_body(dialect: Dialect, status: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(dialect, UpstreamReply(status, {}, b""))


@each_dialect
def test_compressed_although_not_asked_for(dialect: Dialect) -> None:
    whole = dialect.say(vectors(dialect.inputs), range(dialect.inputs))
    with pytest.raises(UpstreamProtocolError):
        read(dialect, UpstreamReply(200, {"content-encoding": "gzip"}, gzip.compress(whole.body)))


@each_remote_kind
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_wrong_address(kind: str, status: int) -> None:
    fault = PROVIDERS[kind].error_from(UpstreamReply(status, {"location": "https://elsewhere.test"}, b""))
    assert isinstance(fault, UpstreamMisconfigured)


@each_kind
def test_no_request_asks_for_a_reply_without_end(kind: str) -> None:
    request = PROVIDERS[kind].request(batch_of(FIRST[kind]), route(kind))
    assert request.max_reply_bytes_of is not None and request.max_reply_bytes_of < 2 * 1024 * 1024
    for dialect in DIALECTS:
        if dialect.kind == kind:
            rows = vectors(dialect.inputs)
            assert len(dialect.say(rows, range(dialect.inputs)).body) < request.max_reply_bytes_of


@pytest.mark.provider_column("errors")
@each_dialect
@pytest.mark.parametrize(
    "body",
    [b"", b"upstream connect error", b"<html><h1>502 Bad Gateway</h1></html>", b"{}", b"[]", b"null", b"[" * 9999],
)
def test_a_200_that_is_no_answer(dialect: Dialect, body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(dialect, UpstreamReply(200, {"content-type": "text/html"}, body))


@each_dialect
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_reply_cut_off_anywhere_is_never_vectors(dialect: Dialect, cut: float) -> None:
    whole = dialect.say(vectors(dialect.inputs), range(dialect.inputs))
    with pytest.raises(UpstreamProtocolError):
        read(dialect, UpstreamReply(200, whole.headers, whole.body[: int(len(whole.body) * cut)]))


@pytest.mark.provider_column("errors")
@pytest.mark.parametrize(("dialect", "status"), ERRORS, ids=lambda each: getattr(each, "name", each))
def test_what_an_error_means(dialect: Dialect, status: int) -> None:
    fault = PROVIDERS[dialect.kind].error_from(dialect.errors[status])
    assert (type(fault), fault.disposition) == MEANS[status]
    assert fault.status == status and fault.sent
    assert not dialect.is_remote or SECRET not in fault.message


@each_kind
@given(status=st.integers(300, 599), body=st.binary(max_size=200), after=st.text(max_size=20))
def test_no_error_reply_is_too_odd_to_classify(kind: str, status: int, body: bytes, after: str) -> None:
    fault = PROVIDERS[kind].error_from(UpstreamReply(status, {"retry-after": after}, body))
    assert isinstance(fault, UpstreamError) and fault.status == status


@pytest.mark.provider_column("sync")
@each_kind
def test_requests_are_repeatable_and_keep_their_secret(kind: str) -> None:
    first, second = (PROVIDERS[kind].request(batch_of(FIRST[kind]), route(kind)) for _ in range(2))
    assert first == second and first.url.startswith("https://api.acme.test/v9/")
    assert SECRET not in repr(first) + first.url and "green" not in repr(first)
    limits = route(kind).limits
    assert min(limits.inputs_per_call, limits.tokens_per_input, limits.tokens_per_call, limits.bytes_per_call) > 0


@pytest.mark.parametrize("said", [1e-30, 1e-45, 3e38])
def test_tiny_and_huge_numbers_are_numbers(said: float) -> None:
    rows = np.full((1, 4), said, dtype=np.float32)
    check_vectors(rows, 1, 4)


@pytest.mark.parametrize("indexes", [[0, 0, 2], [2, 1, 1], [0, 1, 3], [1, 2, 3], [-1, 0, 1], [2, 1]])
def test_an_order_names_each_input_exactly_once(indexes: list[int]) -> None:
    """Whatever an adapter has let through."""
    with pytest.raises(UpstreamProtocolError):
        in_input_order(vectors(len(indexes)), indexes, 3)


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), (0, 4), (3, 3), (3, 5)])
def test_as_many_vectors_as_inputs_and_as_wide_as_requested(shape: tuple[int, int]) -> None:
    """Whatever an adapter has let through."""
    with pytest.raises(UpstreamProtocolError):
        check_vectors(np.ones(shape, dtype=np.float32), 3, 4)
