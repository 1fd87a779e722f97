"""What the caller of chaos takes for a breach: whatever it is told that nothing which was broken explains."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from providers.fake import fake_vectors
from tests.faults.sync_calls import SyncCalls
from tests.system.stack import UPSTREAM_MODEL, WIDTH, Stack

URL = "http://127.0.0.1:1"


@pytest.fixture
def calls() -> SyncCalls:
    return SyncCalls(cast("Stack", SimpleNamespace(urls={"api": URL})), seed=1)


def answer(status: int, text: str = "a", **headers: str) -> httpx.Response:
    body: dict[str, Any] = {"data": [{"embedding": fake_vectors([text], WIDTH, UPSTREAM_MODEL)[0].tolist()}]}
    return httpx.Response(status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_the_right_vector_and_words_to_come_again_are_no_breach(calls: SyncCalls) -> None:
    calls.judge(URL, time.monotonic(), "a", answer(200))
    for status in (429, 503):
        calls.judge(URL, time.monotonic(), "a", answer(status, retry_after="1"))
    assert calls.breaches == []


@pytest.mark.parametrize(
    "told",
    [
        answer(200, "b"),
        httpx.Response(200, text="<html>"),
        answer(503),
        answer(429),
        answer(500),
        answer(502),
        answer(504),
        answer(401),
    ],
)
def test_anything_else_is(calls: SyncCalls, told: httpx.Response) -> None:
    with calls.misbehaving():  # long over
        pass
    calls.judge(URL, time.monotonic() + 1, "a", told)
    assert len(calls.breaches) == 1


@pytest.mark.parametrize(("status", "breaches"), [(502, 0), (504, 0), (500, 1)])
def test_a_provider_that_misbehaves_explains_a_502_and_no_500(calls: SyncCalls, status: int, breaches: int) -> None:
    with calls.misbehaving():
        began = time.monotonic()
    calls.judge(URL, began, "a", answer(status))  # the call ended after it was over
    assert len(calls.breaches) == breaches


def test_only_an_api_that_was_ended_may_be_silent(calls: SyncCalls) -> None:
    with calls.ending("api"):
        calls.judge_silence(URL, time.monotonic(), "ReadError")
    calls.judge_silence(URL, time.monotonic(), "ConnectError")  # not up yet
    assert calls.breaches == []
    began = time.monotonic()
    calls.judge(URL, began, "a", answer(200))
    calls.judge_silence(URL, began + 1, "ReadError")
    assert len(calls.breaches) == 1
