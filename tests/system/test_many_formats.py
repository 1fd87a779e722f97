"""One job over five wire formats at once, with faults and one upstream killed: every vector and token is right."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import orjson
import pytest

from models.base import PICO
from models.usage import UsageKind
from providers.fake import fake_tokens, fake_vectors
from tests.system.many_formats import SPACE, ManyFormatsStack, process_of
from tests.system.oracle import judge, read_snapshot
from tests.system.processes import ROOT
from tests.system.stack import PRICE, WIDTH

INPUTS = 30_000
KINDS = ("cohere", "google", "tei", "ollama")
VICTIM = "google"
END_S = 90.0
# About 5 % of the calls of each fake fail.
FAULTS = (
    {"when": {"probability": 0.02}, "do": {"status": 500}},
    {"when": {"probability": 0.015}, "do": {"status": 429, "retry_after": 1}},
    {"when": {"probability": 0.015}, "do": {"reply": "short"}},
)
# So that the job is still under way when a fake is killed.
LATENCY = {"do": {"latency_ms": 40}}


def real_texts(count: int) -> list[str]:
    """Summaries of Python packages, as people wrote them: alone, then each with another one after it."""
    with gzip.open(ROOT / "examples" / "texts.jsonl.gz") as lines:
        texts = [orjson.loads(line)["text"] for line in lines]
    size = len(texts)
    return [*texts, *(f"{texts[at % size]} {texts[(at + at // size * 7) % size]}" for at in range(size, count))]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyFormatsStack]:
    with ManyFormatsStack(tmp_path_factory.mktemp("many-formats"), KINDS) as stack:
        yield stack


@pytest.mark.timeout(240)
def test_a_job_over_five_formats_with_faults_and_a_killed_upstream(stack: ManyFormatsStack) -> None:
    texts = real_texts(INPUTS)
    assert len(texts) == INPUTS
    stack.script_all(LATENCY, *FAULTS)
    job_id = stack.submit(texts)
    stack.await_progress(job_id, INPUTS // 3)
    stack.processes.kill(process_of(VICTIM))
    assert stack.bill_of(VICTIM) and stack.job(job_id)["finished_at"] is None
    stack.await_end(job_id, END_S)
    stack.processes.check()

    job = stack.job(job_id)
    assert job["status"] == "completed" and job["errors"] == []
    assert (job["counts"]["completed"], job["counts"]["failed"]) == (INPUTS, 0)
    answer = stack.api.get(f"/v1/embeddings/jobs/{job_id}/results", params={"format": "npy"})
    assert np.array_equal(np.load(io.BytesIO(answer.content)), fake_vectors(texts, WIDTH, SPACE))
    findings = judge(stack, job_id, texts)
    assert findings.is_clean, findings

    assert read_snapshot(stack, job_id).tokens_in_ledger == sum(map(fake_tokens, set(texts)))
    check_bills(stack)
    survivors = [account for account in stack.accounts if account != VICTIM]
    assert all(stack.faults_of(account) for account in survivors), "a fake has failed at nothing"
    assert {"500", "429"} <= {name for account in survivors for name in stack.faults_of(account)}


def check_bills(stack: ManyFormatsStack) -> None:
    """Each fake's bill is what the ledger has of its account, to the token; the killed one's within what is ambiguous.

    The ledger is that of all calls of the stack, health probes and control calls too.
    """
    figures = "sum(prompt_tokens), sum(cost_usd)"  # the cost in picodollars
    rows = stack.query(f"SELECT provider, kind, {figures} FROM usage GROUP BY provider, kind")
    ledger = {(account, kind): (tokens, Decimal(cost) / PICO) for account, kind, tokens, cost in rows}
    for account in stack.accounts:
        billed = sum(line["tokens"] for line in stack.bill_of(account))
        delivered, wasted, ambiguous = (ledger.get((account, kind), (0, Decimal(0))) for kind in UsageKind)
        known = delivered[0] + wasted[0]
        # Tokens of short replies, which are billed and refused, on each account that went on.
        assert delivered[0] and (wasted[0] or account == VICTIM), account
        if account == VICTIM:
            assert known <= billed <= known + ambiguous[1] * 1_000_000 / Decimal(PRICE), account
        else:
            assert (billed, ambiguous[0]) == (known, 0), account
