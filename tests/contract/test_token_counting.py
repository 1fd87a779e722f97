"""What a dry run counts: exact for the local model, learned from answers elsewhere, sampled where it is large."""

from __future__ import annotations

import random

import pytest

from engine.jobs.ingest.token_counting import COUNTED_BYTES, Method, TokenTotal
from engine.planning import tokens
from tests.gateway import JOBS, Gateway

LOCAL = "local/wordllama-256"
TEXTS = ["naïve café in Zürich", "Donaudampfschifffahrtsgesellschaft", "a cat", "日本語の文章です", "x = {1: [2, 3]};"]


async def estimate(gateway: Gateway, texts: list[str], model: str) -> dict[str, object]:
    reply = await gateway.client.post(JOBS, json={"model": model, "input": texts, "dry_run": True})
    assert reply.status_code == 200, reply.text
    body: dict[str, object] = reply.json()
    return body


@pytest.mark.parametrize("texts", [TEXTS, ["one text"], [f"{text} number {i}" for i in range(400) for text in TEXTS]])
async def test_the_local_model_is_counted_by_its_own_tokenizer(gateway: Gateway, texts: list[str]) -> None:
    told = await estimate(gateway, texts, LOCAL)
    job = await gateway.run((await gateway.submit(texts, model=LOCAL))["id"])
    assert job["status"] == "completed"
    assert (told["tokens"], told["tokens_margin"], told["estimated"]) == (job["usage"]["total_tokens"], 0, False)


async def test_elsewhere_the_projects_own_jobs_teach_the_ratio(gateway: Gateway) -> None:
    """Of the fake provider, whose tokens are none of cl100k's."""
    before = [f"{text} once {number}" for number in range(20) for text in TEXTS]
    later = [f"{text} later {number}" for number in range(20) for text in TEXTS]
    job = await gateway.run((await gateway.submit(before))["id"])
    assert job["status"] == "completed"
    told = await estimate(gateway, later, "tiny")
    assert told["estimated"] is True
    exact = (await gateway.run((await gateway.submit(later))["id"]))["usage"]["total_tokens"]
    assert abs(int(str(told["tokens"])) - exact) < 0.15 * exact
    assert abs(sum(map(tokens.count, later)) - exact) > 0.15 * exact  # what it said before


async def test_another_projects_jobs_teach_nothing(gateway: Gateway) -> None:
    stranger = await gateway.another_key()
    await gateway.run((await gateway.submit([f"{text} {number}" for number in range(20) for text in TEXTS]))["id"])
    reply = await gateway.client.post(JOBS, json={"model": "tiny", "input": TEXTS, "dry_run": True}, headers=stranger)
    assert reply.json()["tokens"] == sum(map(tokens.count, TEXTS))


WORDS = ["the", "Bundesverfassungsgericht", "réseau", "12,345.67", "of", "日本", "embedding", "{}", "and"]


def corpus(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randrange(5, 120))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_a_large_corpus_is_sampled_within_its_margin(seed: int) -> None:
    texts = corpus(seed, 40_000)
    first, later = ({word: tokens.count(f"{space}{word}") for word in WORDS} for space in ("", " "))

    def count(text: str) -> int:
        """As tokens.count, in a fraction of its time: no token reaches across a space."""
        words = text.split(" ")
        return first[words[0]] + sum(later[word] for word in words[1:])

    assert [count(text) for text in texts[:500]] == [tokens.count(text) for text in texts[:500]]
    total = TokenTotal(Method(lambda some: [count(text) for text in some], is_exact=True))
    for low in range(0, len(texts), 1000):
        total.add(texts[low : low + 1000])
    exact = sum(map(count, texts))
    assert total.is_sampled and 0 < total.margin < 0.02 * exact
    assert abs(total.total - exact) < 2 * total.margin  # four standard errors


def test_a_sample_takes_a_fraction_of_the_time() -> None:
    texts = corpus(9, 60_000)
    assert sum(map(len, texts)) > 4 * COUNTED_BYTES
    counted = 0

    def count(some: list[str] | tuple[str, ...]) -> list[int]:
        nonlocal counted
        counted += len(some)
        return [len(text) for text in some]

    total = TokenTotal(Method(count, is_exact=True))  # type: ignore[arg-type]
    for low in range(0, len(texts), 1000):
        total.add(texts[low : low + 1000])
    assert counted < 0.4 * len(texts)


def test_token_arrays_are_counted_as_they_are() -> None:
    total = TokenTotal(Method(lambda some: [0] * len(some), is_exact=True))
    total.add([[1, 2, 3], "text", [4]])
    assert (total.total, total.margin) == (4, 0)
