"""The oracle itself: whatever is wrong with the books of a job is seen, and a job that is right is not suspected."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.system.oracle import Bill, corpus, judge, read_snapshot, unbalanced_figures
from tests.system.stack import BATCH, UPSTREAM_KEY, UPSTREAM_MODEL, Stack

DUPLICATES = 40
POISON = 7


@pytest.fixture
def stack(sqlite_stack: Stack) -> Iterator[Stack]:
    yield sqlite_stack
    sqlite_stack.latency(0)


@pytest.fixture
def texts(request: pytest.FixtureRequest) -> list[str]:
    """Texts of this test alone: the stack's bill is of all of them."""
    texts = corpus(request.node.name, 200)
    texts[POISON] = "poison: refused"
    return [*texts, *texts[:DUPLICATES]]


@pytest.fixture
def job_id(stack: Stack, texts: list[str]) -> str:
    """A job with duplicates and with a refused input, which has a duplicate too."""
    stack.script({"when": {"contains": "poison: refused"}, "do": {"status": 400}})
    job_id = stack.submit(texts)
    stack.await_end(job_id, 30)
    assert stack.job(job_id)["status"] == "completed_with_errors"
    assert stack.job(job_id)["deduplicated_inputs"] == DUPLICATES - 1
    return job_id


Tamper = Callable[[str], tuple[str, str]]  # SQL that spoils the books of a job, and SQL that mends them


def one_row(job_id: str) -> str:
    return f"id = (SELECT min(id) FROM usage WHERE job_id = '{job_id}')"


TAMPER: dict[str, Tamper] = {
    "missing row": lambda job: (
        f"UPDATE usage SET job_id = 'hidden' WHERE {one_row(job)}",
        f"UPDATE usage SET job_id = '{job}' WHERE job_id = 'hidden'",
    ),
    "tokens of the ledger": lambda job: (
        f"UPDATE usage SET prompt_tokens = prompt_tokens + 1 WHERE {one_row(job)}",
        f"UPDATE usage SET prompt_tokens = prompt_tokens - 1 WHERE {one_row(job)}",
    ),
    "cost of the ledger": lambda job: (
        f"UPDATE usage SET cost_usd = cost_usd - 1 WHERE {one_row(job)}",
        f"UPDATE usage SET cost_usd = cost_usd + 1 WHERE {one_row(job)}",
    ),
    **{
        f"{column} of the job": lambda job, column=column: (  # type: ignore[misc]
            f"UPDATE jobs SET {column} = {column} + 1 WHERE id = '{job}'",
            f"UPDATE jobs SET {column} = {column} - 1 WHERE id = '{job}'",
        )
        for column in ("completed", "failed", "prompt_tokens", "cost_usd", "deduplicated")
    },
}


def test_whatever_is_wrong_in_the_books_is_seen(stack: Stack, job_id: str, texts: list[str]) -> None:
    failed = {POISON, len(texts) - DUPLICATES + POISON}
    for name, tamper in TAMPER.items():
        assert judge(stack, job_id, texts, failed=failed).is_clean, name
        spoil, mend = tamper(job_id)
        stack.query(spoil)
        findings = judge(stack, job_id, texts, failed=failed)
        assert findings.unbalanced and not findings.is_clean, name
        stack.query(mend)
    # Both sides wrong in the same way agree with each other, and still not with the texts.
    for sign in "+-":
        stack.query(f"UPDATE usage SET prompt_tokens = prompt_tokens {sign} 1 WHERE {one_row(job_id)}")
        stack.query(f"UPDATE jobs SET prompt_tokens = prompt_tokens {sign} 1 WHERE id = '{job_id}'")
        assert judge(stack, job_id, texts, failed=failed).is_clean == (sign == "-")


def test_a_bill_that_does_not_cover_the_vectors_is_seen(stack: Stack, job_id: str, texts: list[str]) -> None:
    snapshot, bill = read_snapshot(stack, job_id), Bill.of(stack, texts)
    assert unbalanced_figures(snapshot, texts, bill) == []
    fewer = bill.times.copy()
    del fewer[texts[0]]
    assert len(unbalanced_figures(snapshot, texts, Bill(fewer, bill.tokens, bill.shared))) == 2
    assert len(unbalanced_figures(snapshot, texts, Bill(bill.times, bill.tokens - 1, bill.shared))) == 2


def test_what_the_upstream_bills_and_no_ledger_has_is_seen(stack: Stack, job_id: str, texts: list[str]) -> None:
    """A call that was made again, and recorded once: the books agree with each other, and not with the bill."""
    failed = {POISON, len(texts) - DUPLICATES + POISON}
    assert judge(stack, job_id, texts, failed=failed).is_clean
    headers = {"authorization": f"Bearer {UPSTREAM_KEY}"}
    again = {"model": UPSTREAM_MODEL, "input": [texts[0]]}
    stack.fake.post("/v1/embeddings", json=again, headers=headers).raise_for_status()
    findings = judge(stack, job_id, texts, failed=failed)
    assert (findings.repeated, findings.unbalanced) == (1, 1)


def test_only_calls_that_overlap_in_part_leave_a_doubt(stack: Stack) -> None:
    """A share of a call is charged by number; a call that was made again as it was has no shares."""
    texts = corpus("overlap", BATCH)

    def billed(*parts: slice) -> Bill:
        for part in parts:
            body = {"model": UPSTREAM_MODEL, "input": texts[part]}
            headers = {"authorization": f"Bearer {UPSTREAM_KEY}"}
            stack.fake.post("/v1/embeddings", json=body, headers=headers).raise_for_status()
        return Bill.of(stack, texts)

    assert billed(slice(0, 40), slice(0, 40)).doubt_tokens == 0
    overlapping = billed(slice(20, 60))
    assert overlapping.repeated == 60 and 0 < overlapping.doubt_tokens < overlapping.tokens / 2
