"""Requests that are signed with the time, on their way through the engine: the clock is the engine's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest

from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import BULK, INTERACTIVE, EmbedRun
from engine.limiter.registry import LimiterRegistry
from engine.routing.router import Router
from engine.upstream.call import Upstream
from models.embedding import Account, Limits, Options, Route
from models.errors import UpstreamMisconfigured
from providers.base import UpstreamReply, UpstreamRequest
from tests.fakes import FakeWire, alias, embed_texts, route, run

HOST = "bedrock-runtime.us-east-1.amazonaws.com"
KEYS = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}
WIDTH = 16
# Of botocore 1.44, for the same bytes at the same instant.
SIGNATURE = "fdf564b67b24da95236b35986c7912b19eefcec09938596fa92f71159b2c7e22"
BODY = b'{"normalize":true,"inputText":"hello"}'


def titan(secrets: Mapping[str, str], api_key: str | None = None) -> Route:
    settings = {"region": "us-east-1"}
    account = Account("aws", "bedrock", f"https://{HOST}", api_key, settings=settings, secrets=secrets)
    return Route(account, "amazon.titan-embed-text-v2:0", WIDTH, Limits(1, 8192, 8192, 2**20), Decimal("0.02"))


def answer(request: UpstreamRequest) -> UpstreamReply:
    return UpstreamReply(200, {}, orjson.dumps({"embedding": [1.0] * WIDTH, "inputTextTokenCount": 3}))


def sent(to: Route, lane: str = BULK, text: str = "hello", now_s: float = 1767323045.0) -> UpstreamRequest:
    """The one request of a call whose engine has this time."""
    wire = FakeWire(**{HOST: answer})
    of = alias(to)

    async def work() -> OutcomeCollector:
        limiters = LimiterRegistry()
        upstream = Upstream(wire, [to.account], limiters, max_reply_bytes=1 << 20, clock=lambda: now_s)
        outcomes = OutcomeCollector(1, WIDTH)
        embed_run = EmbedRun(upstream, Router(limiters), of, lane, time.monotonic() + 60, outcomes)
        return await embed_texts(embed_run, [text], options=Options(), concurrency=1)

    outcomes = run(work())
    assert outcomes.vectors_in_order()[0].tolist() == [[1.0] * WIDTH] and len(wire.sent) == 1
    return wire.sent[0]


@pytest.mark.parametrize("lane", [BULK, INTERACTIVE])
def test_the_bytes_that_are_sent_are_signed_with_the_clock_of_the_engine(lane: str) -> None:
    request = sent(titan(KEYS), lane)
    assert request.body == BODY and request.headers["x-amz-date"] == "20260102T030405Z"
    assert request.headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/us-east-1/bedrock/aws4_request, "
        f"SignedHeaders=accept;content-type;host;x-amz-date, Signature={SIGNATURE}"
    )


def test_a_session_token_is_signed() -> None:
    request = sent(titan({**KEYS, "session_token": "SESSIONTOKENEXAMPLE"}))
    assert request.headers["x-amz-security-token"] == "SESSIONTOKENEXAMPLE"
    assert "x-amz-date;x-amz-security-token," in request.headers["authorization"]


def test_the_next_second_has_another_signature() -> None:
    first, second = (sent(titan(KEYS), now_s=now_s).headers for now_s in (1767323045.0, 1767323046.0))
    assert second["x-amz-date"] == "20260102T030406Z" and second["authorization"] != first["authorization"]


@pytest.mark.parametrize("secrets", [{}, KEYS])
def test_a_bedrock_key_is_sent_and_nothing_is_signed(secrets: dict[str, str]) -> None:
    """AWS's own SDKs prefer it too."""
    headers = sent(titan(secrets, "bedrock-api-key")).headers
    assert headers["authorization"] == "Bearer bedrock-api-key" and "x-amz-date" not in headers


def test_without_any_key_nothing_is_signed() -> None:
    headers = sent(titan({})).headers
    assert "authorization" not in headers and "x-amz-date" not in headers


def test_through_a_proxy() -> None:
    to = titan(KEYS)
    request = sent(replace(to, account=replace(to.account, proxy="http://proxy:3128")))
    assert request.proxy == "http://proxy:3128" and SIGNATURE in request.headers["authorization"]


def test_half_a_key_is_the_operators_error_and_no_call() -> None:
    with pytest.raises(UpstreamMisconfigured) as refused:
        sent(titan({"access_key_id": "AKIDEXAMPLE"}))
    assert not refused.value.sent and "secret_access_key" in refused.value.advice


def test_other_kinds_are_not_signed() -> None:
    to = route(HOST)
    upstream_reply = orjson.dumps({"data": [{"index": 0, "embedding": [1.0] * WIDTH}]})
    wire = FakeWire(**{HOST: lambda request: UpstreamReply(200, {}, upstream_reply)})

    async def work() -> None:
        limiters = LimiterRegistry()

        def no_clock() -> float:
            raise AssertionError("the clock was read for a request that is not signed")

        upstream = Upstream(wire, [to.account], limiters, max_reply_bytes=1 << 20, clock=no_clock)
        outcomes = OutcomeCollector(1, WIDTH)
        await embed_texts(
            EmbedRun(upstream, Router(limiters), alias(to), BULK, time.monotonic() + 60, outcomes), ["hello"]
        )

    run(work())
    assert "x-amz-date" not in wire.sent[0].headers
