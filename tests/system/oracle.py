"""The oracle of the whole system: what every job must have come to, whatever was killed on the way."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import numpy as np

from engine.database import Database
from engine.jobs.keeper import RECORD_INPUTS
from engine.settings import Settings
from providers.fake import fake_tokens, fake_vectors, input_hash
from tests.integration.truth import Truth
from tests.services import run_async
from tests.system.stack import BATCH, CALLS_IN_FLIGHT, MODEL, PRICE, UPSTREAM_MODEL, WIDTH, Stack

# What one killed process may have had under way: calls in flight, and answers that waited to be recorded.
REPEATS_PER_KILL = CALLS_IN_FLIGHT * BATCH + RECORD_INPUTS


def corpus(tag: str, count: int) -> list[str]:
    """Texts that occur in no other job, of different lengths and scripts."""
    words = ("stone", "fluß", "水", "a\u2028b", "😀", "word " * 9)
    return [f"{tag} {index} {words[index % len(words)]}" for index in range(count)]


def check(stack: Stack, job_id: str, texts: Sequence[str], *, processes_killed: int = 0) -> int:
    """Check everything about a finished job; how many inputs were embedded more than once."""
    job = stack.job(job_id)
    count = len(texts)
    tokens = [fake_tokens(text) for text in texts]
    assert job["status"] == "completed", job
    assert job["counts"] == {"total": count, "completed": count, "failed": 0, "pending": 0}
    assert (job["progress"], job["errors"], job["model"]) == (1.0, [], MODEL)
    assert job["usage"] == {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    assert Decimal(job["cost_usd"]) == sum(tokens) * Decimal(PRICE) / 1_000_000

    expected = fake_vectors(texts, WIDTH, UPSTREAM_MODEL)
    answer = stack.api.get(f"/v1/embeddings/jobs/{job_id}/results", params={"format": "npy"})
    assert answer.headers["x-embedmill-complete"] == "true"
    assert np.array_equal(np.load(io.BytesIO(answer.content)), expected)

    truth = _truth(stack, job_id)
    truth.check(lambda indexes: expected[indexes[0] : indexes[-1] + 1])
    assert sorted(truth.with_vector) == list(range(count))
    assert truth.tokens_in_ledger == sum(tokens)
    return _check_bill(stack, texts, tokens, truth.tokens_in_ledger, processes_killed)


def _check_bill(
    stack: Stack, texts: Sequence[str], tokens: Sequence[int], in_ledger: int, processes_killed: int
) -> int:
    index_of = {input_hash(text, UPSTREAM_MODEL): index for index, text in enumerate(texts)}
    times: Counter[int] = Counter()
    billed_tokens = 0
    for call in stack.bill():
        if call["input_hashes"][0] in index_of:
            times.update(index_of[name] for name in call["input_hashes"])
            billed_tokens += call["tokens"]
    assert len(times) == len(texts), "an input has a vector that nobody was asked for"
    repeated = sum(times.values()) - len(texts)
    assert billed_tokens - in_ledger == sum((n - 1) * tokens[index] for index, n in times.items())
    assert repeated <= processes_killed * REPEATS_PER_KILL, f"{repeated} inputs were embedded again"
    return repeated


def _truth(stack: Stack, job_id: str) -> Truth:
    async def read() -> Truth:
        database = Database(Settings(database_url=stack.database_url).sqlalchemy_url)
        try:
            return await Truth.read(database, job_id)
        finally:
            await database.close()

    return run_async(read())
