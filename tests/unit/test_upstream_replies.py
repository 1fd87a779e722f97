"""What comes back over any transport: compressed bodies, routes without base64, counts that are not believed."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import logging
import zlib
from typing import Any

import orjson
import pytest

from engine.embedding.embed import BULK, INTERACTIVE
from models.embedding import Options
from models.errors import (
    EmbedmillError,
    UnsupportedParameter,
    UpstreamAuthFailed,
    UpstreamProtocolError,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply
from providers.content_encoding import inflated
from providers.fake import fake_vectors
from tests.fakes import MODEL, WIDTH, FakeWire, alias, embed_texts, fake, new_run, route, run, time_passes
from tests.unit.test_outage_causes import anew

NO_BASE64 = {"encoding_format": "base64"}
DATA = b'{"data":[]}' * 50


def encodings_asked(wire: FakeWire) -> list[str | None]:
    return [orjson.loads(request.body).get("encoding_format") for request in wire.sent]


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(DATA, mtime=0)),
        ("x-gzip", gzip.compress(DATA, mtime=0)),
        ("GZip", gzip.compress(DATA[:100], mtime=0) + gzip.compress(DATA[100:], mtime=0)),
        ("deflate", zlib.compress(DATA)),
        ("deflate", raw_deflate(DATA)),
        ("deflate, gzip", gzip.compress(zlib.compress(DATA), mtime=0)),
        ("identity, gzip", gzip.compress(DATA, mtime=0)),
        ("", gzip.compress(DATA, mtime=0)),
        ("gzip", DATA),  # a proxy has inflated it and left the header
        ("br", DATA),
        ("gzip", gzip.compress(DATA, mtime=0) + b"\0" * 9),
    ],
)
def test_a_compressed_body_is_read(encoding: str, body: bytes) -> None:
    assert inflated({"content-encoding": encoding}, body, max_bytes=10_000) == DATA


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(bytes(10_001), mtime=0)),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(50_000_000), mtime=0), mtime=0)),
        ("deflate", zlib.compress(bytes(50_000_000))),
        ("gzip", gzip.compress(DATA, mtime=0)[:-12]),
        ("gzip", gzip.compress(DATA, mtime=0)[:30] + b"damage" * 9),
        ("br", b"\x1b\x0f"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("gzip, gzip, gzip, gzip", gzip.compress(DATA, mtime=0)),
    ],
)
def test_bombs_damage_and_what_is_not_read(encoding: str, body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        inflated({"content-encoding": encoding}, body, max_bytes=10_000)


@pytest.mark.parametrize("rule", [{}, {"do": {"gzip": True}}])
def test_vectors_of_a_compressed_reply(rule: dict[str, Any]) -> None:
    wire = FakeWire(up=fake(*([rule] if rule else [])))
    gathered = run(embed_texts(new_run(wire, alias(route()), 2), ["a", "b"]))
    assert (
        b"".join(rows.tobytes() for rows in gathered.vectors_in_order())
        == fake_vectors(["a", "b"], WIDTH, MODEL).tobytes()
    )


def test_a_compressed_error_is_what_it_says() -> None:
    body = [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}]
    wire = FakeWire(up=fake({"do": {"status": 400, "body": body, "gzip": True}}))
    with pytest.raises(UpstreamAuthFailed):
        run(embed_texts(new_run(wire, alias(route()), 9), list("abcdefghi")))
    assert len(wire.sent) == 2  # the second is a text of ours: it is not the caller's doing


def test_an_error_whose_body_cannot_be_inflated_is_still_what_its_status_says() -> None:
    wire = FakeWire(up=fake())
    wire.edit = lambda reply: UpstreamReply(401, {"content-encoding": "gzip"}, b"\x1f\x8bnonsense")
    with pytest.raises(UpstreamAuthFailed):
        run(embed_texts(new_run(wire, alias(route()), 1), ["a"]))


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "…", "param": "encoding_format", "code": "invalid_value"}},
        {"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'", "type": "literal_error"}]},
        {"error": "base64 encoding is not supported"},
    ],
)
def test_base64_that_is_refused_costs_one_call(body: object) -> None:
    wire = FakeWire(up=fake({"when": NO_BASE64, "do": {"status": 400, "body": body}}))
    embed_run = new_run(wire, alias(route()), 40)
    texts = [f"text {i}" for i in range(40)]
    gathered = run(embed_texts(embed_run, texts))
    assert gathered.vectors_in_order()[0].tobytes() == fake_vectors(texts, WIDTH, MODEL).tobytes()
    run(embed_texts(embed_run, texts))
    assert encodings_asked(wire) == ["base64", None, None]
    assert [call.success for call in embed_run.calls] == [False, True, True]


@pytest.mark.parametrize("body", ["unknown variant `base64`, expected `float` at line 1 column 90", {"error": "no"}])
def test_base64_that_is_refused_in_unknown_words_is_found_out(body: object) -> None:
    """text-embeddings-inference before it knew base64 answered in plain text."""
    wire = FakeWire(up=fake({"when": NO_BASE64, "do": {"status": 422, "body": body}}))
    embed_run = new_run(wire, alias(route()), 40)
    texts = [f"text {i}" for i in range(40)]
    gathered = run(embed_texts(embed_run, texts))
    assert all(part.error is None for part in gathered.outcomes)
    assert encodings_asked(wire).count("base64") <= 12
    asked = len(wire.sent)
    run(embed_texts(embed_run, texts))
    assert set(encodings_asked(wire)[asked:]) == {None}


SAYS_SO = {"error": {"message": "base64 encoding is not supported", "type": "server_error"}}


@pytest.mark.parametrize("status", [500, 501, 502, 503])
@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
def test_a_server_that_fails_on_base64_and_says_so_is_asked_for_floats_at_once(status: int, lane: str) -> None:
    wire = FakeWire(up=fake({"when": NO_BASE64, "do": {"status": status, "body": SAYS_SO}}))
    embed_run = new_run(wire, alias(route()), 1, lane=lane)
    run(embed_texts(embed_run, ["a"]))
    run(embed_texts(embed_run, ["a"]))
    assert encodings_asked(wire) == ["base64", None, None] and not embed_run.router.outages.active


@pytest.mark.parametrize("status", [500, 502, 503, 529])
@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
@pytest.mark.parametrize("count", [1, 40])
def test_a_server_that_fails_on_base64_without_a_word_is_found_out(status: int, lane: str, count: int) -> None:
    wire = FakeWire(up=fake({"when": NO_BASE64, "do": {"status": status}}))
    embed_run = new_run(wire, alias(route()), count, lane=lane, seconds=1_000.0)
    texts = [f"text {i}" for i in range(count)]

    async def called() -> int:
        failed = 0
        for _ in range(4):
            try:
                await embed_texts(anew(embed_run, count), texts)
            except EmbedmillError:
                failed += 1
            await time_passes(6.0)
        return failed

    assert run(called()) == 0 and not embed_run.router.outages.active
    asked = len(wire.sent)
    run(embed_texts(anew(embed_run, count), texts))
    assert set(encodings_asked(wire)[asked:]) == {None} and asked <= 20


@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
def test_an_outage_is_not_taken_for_a_missing_encoding(lane: str) -> None:
    wire = FakeWire(up=fake({"times": 9, "do": {"status": 500}}))
    embed_run = new_run(wire, alias(route()), 1, lane=lane, seconds=1_000.0)

    async def called() -> None:
        for _ in range(6):
            with contextlib.suppress(EmbedmillError):
                await embed_texts(anew(embed_run, 1), ["a"])
            await time_passes(6.0)

    run(called())
    assert encodings_asked(wire)[-1] == "base64" and encodings_asked(wire).count(None) <= 3
    assert not embed_run.router.outages.active


def test_a_route_that_has_answered_in_base64_is_not_asked_for_floats() -> None:
    wire = FakeWire(up=fake({"when": {"contains": "poison"}, "do": {"status": 400, "message": "No."}}))
    embed_run = new_run(wire, alias(route()), 1)
    for text in ("good", "poison", "poison"):
        run(embed_texts(embed_run, [text]))
    wire.hosts["up"] = fake({"do": {"status": 500}})
    with pytest.raises(UpstreamUnavailable):
        run(embed_texts(embed_run, ["a"]))
    assert set(encodings_asked(wire)) == {"base64"}


def test_a_callers_own_options_are_no_reason_to_ask_for_floats() -> None:
    wire = FakeWire(up=fake({"do": {"status": 400, "message": "No."}}))
    with pytest.raises(UnsupportedParameter):
        run(
            embed_texts(
                new_run(wire, alias(route()), 1), ["a"], options=Options(provider_options={"up": {"user": "me"}})
            )
        )
    assert set(encodings_asked(wire)) == {"base64"}


def test_an_account_that_is_set_to_floats_is_never_asked_for_base64() -> None:
    wire = FakeWire(up=fake({"when": NO_BASE64, "do": {"status": 400}}))
    run(embed_texts(new_run(wire, alias(dataclasses.replace(route(), encoding="float")), 1), ["a"]))
    assert encodings_asked(wire) == [None]


@pytest.mark.parametrize("count", [10**15, -7, 1.5, True, "12"])
def test_a_count_that_is_not_believed_is_estimated_and_warned_of(count: object, caplog: Any) -> None:
    wire = FakeWire(up=fake({"do": {"usage": {"prompt_tokens": count}}}))
    embed_run = new_run(wire, alias(route()), 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            part = run(embed_texts(embed_run, ["a" * 400])).outcomes[-1]
            assert (part.tokens, part.tokens_estimated) == (134, True)
    told = [record.getMessage() for record in caplog.records if "not believed" in record.getMessage()]
    assert len(told) == 1 and "provider up" in told[0]
