"""`truncated`: whatever was not embedded whole says so, whoever cut it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway import CONFIG, Gateway, close_gateway, open_gateway

leaving_nothing = pytest.mark.asyncio(loop_scope="session")
LONG = "word and word " * 40
PROSE = "The quick brown fox jumps over the lazy dog, and nobody is surprised. "
RULES = """
    { when = { contains = "too much" }, do = { status = 400, code = "context_length_exceeded", message = "too long" } },
    { when = { contains = "silently" }, do = { usage = { prompt_tokens = 256, total_tokens = 256 } } },
"""


def cut(reply: httpx.Response) -> list[int]:
    """The indexes that say so. Those that do not are as they always were."""
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    assert all(
        set(item) in ({"object", "index", "embedding"}, {"object", "index", "embedding", "truncated"}) for item in data
    )
    assert all(item.get("truncated", True) is True for item in data)
    return [item["index"] for item in data if "truncated" in item]


@leaving_nothing
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a", []),
        (["a", "b"], []),
        (LONG, [0]),
        ([LONG], [0]),
        (["a", LONG, "b", LONG + "c"], [1, 3]),
        ([list(range(40)), [1]], [0]),
        (list(range(40)), [0]),
        (list(range(32)), []),
        (["é" * 200, "é"], [0]),
    ],
)
async def test_an_end_that_we_cut(
    shared_gateway: Gateway, given: Any, expected: list[int], encoding_format: str
) -> None:
    """It was cut in silence."""
    reply = await shared_gateway.embed(given, model="fixed", truncate="end", encoding_format=encoding_format)
    assert cut(reply) == expected


@pytest.fixture
async def cutting(data_dir: Path) -> Any:
    gateway = await open_gateway(data_dir, config=CONFIG.replace("script = [", "script = [" + RULES))
    yield gateway
    await close_gateway(gateway)


async def test_an_end_that_the_provider_made_us_cut(cutting: Gateway) -> None:
    long = PROSE * 20 + "too much"
    assert cut(await cutting.embed(["a", long, "b"], truncate="end")) == [1]
    assert cut(await cutting.embed(long, truncate="end")) == [0]
    assert (await cutting.embed(long)).status_code == 400


async def test_an_end_that_the_provider_cut_in_silence(cutting: Gateway) -> None:
    """Its count tells: 256 tokens cannot be all of 14,000 bytes of prose."""
    long = PROSE * 200 + "silently"
    for truncate in ("none", "end"):
        assert cut(await cutting.embed([long], truncate=truncate)) == [0]
    assert cut(await cutting.embed([PROSE * 200])) == []
    assert cut(await cutting.embed([PROSE + "silently"])) == []


async def test_a_large_answer_says_it_too(gateway: Gateway) -> None:
    texts = [f"text {index}" for index in range(600)]
    texts[599] = texts[300] = LONG
    assert cut(await gateway.embed(texts, model="fixed", truncate="end")) == [300, 599]
