"""The oracle of the whole system: what every job must have come to, whatever was broken on the way.

I1 every accepted job ends; I2 every index has one outcome; I3 vector i is the fake's function of input i; I4 ledger,
counters and the upstream's bill agree; I5 what was embedded again; I7 no job leaves a final state by itself; I8 a
stranger reads nothing; I9 no input and no key is in logs, metrics, job objects or the broker. (I6, recovery, is
measured by each test; I10, no manual step, holds because none is made.)
"""

from __future__ import annotations

import io
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

import httpx
import numpy as np
import redis

from engine.config.settings import Settings
from engine.jobs.execution.results_writer import RECORD_INPUTS
from engine.ledger.call_cost import CONTROL_TEXT
from engine.storage.database import Database
from models.job import FINISHED, LEGAL_MOVES, JobStatus
from models.usage import UsageKind
from providers.fake import fake_tokens, fake_vectors, input_hash
from tests.integration.snapshot import DatabaseSnapshot, total_usd
from tests.services import run_async
from tests.system.stack import BATCH, CALLS_IN_FLIGHT, MODEL, PRICE, UPSTREAM_KEY, UPSTREAM_MODEL, WIDTH, Stack

CONTROL_CALL = "control_call"
SWEPT_WITHIN_S = 20.0
LOOK_AGAIN_S = 0.5
# What one killed process may have had under way: calls in flight, and answers that waited to be recorded.
REPEATS_PER_KILL = CALLS_IN_FLIGHT * BATCH + RECORD_INPUTS


def corpus(tag: str, count: int) -> list[str]:
    """Texts that occur in no other job, of different lengths and scripts."""
    words = ("stone", "fluß", "水", "a\u2028b", "😀", "word " * 9)
    return [f"{tag} {index} {words[index % len(words)]}" for index in range(count)]


@dataclass
class Findings:
    """What became of the inputs of one run. All but `inputs` and `repeated` must be 0."""

    inputs: int = 0
    lost: int = 0  # no vector, though nothing was wrong with the input
    duplicated: int = 0  # outcomes beyond the first
    misaligned: int = 0  # vectors of another text
    duplicate_ledger: int = 0  # inputs charged beyond the first time
    unbalanced: int = 0  # figures of an ended job that differ: outcomes, counters, ledger, and the upstream's bill
    repeated: int = 0  # inputs that the upstream embedded, and billed, beyond the first time

    @property
    def overhead(self) -> float:
        return self.repeated / self.inputs if self.inputs else 0.0

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicated or self.misaligned or self.duplicate_ledger or self.unbalanced)

    def __add__(self, other: Findings) -> Findings:
        return Findings(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(Findings)))


def judge(
    stack: Stack, job_id: str, texts: Sequence[str], *, failed: Collection[int] = (), patience_s: float = 0.0
) -> Findings:
    """Count what went wrong with a job. `failed` are the inputs that had to fail.

    `patience_s`: how long the sweep may take to write down the calls of killed processes.
    """
    gives_up_at = time.monotonic() + patience_s
    snapshot = read_snapshot(stack, job_id)
    while time.monotonic() < gives_up_at and snapshot.job is not None and snapshot.job.status in FINISHED:
        if not unbalanced_figures(snapshot, texts, Bill.of(stack, texts)):
            break
        time.sleep(LOOK_AGAIN_S)
        snapshot = read_snapshot(stack, job_id)
    assert snapshot.job is not None, f"{job_id} is gone"
    outcomes = Counter(snapshot.with_vector)
    refused = Counter(snapshot.with_error)
    expected = fake_vectors(texts, WIDTH, UPSTREAM_MODEL)
    misaligned = 0
    for run in snapshot.runs:
        kept = np.frombuffer(run.data, dtype="<f4").reshape(run.count, WIDTH)
        wanted = expected[run.first_index : run.first_index + run.count]
        misaligned += int((kept != wanted).any(axis=1).sum())
    wanted_vectors = set(range(len(texts))) - set(failed)
    bill = Bill.of(stack, texts)
    has_ended = snapshot.job.status in FINISHED
    unbalanced = unbalanced_figures(snapshot, texts, bill) if has_ended else []
    for figure in unbalanced:
        print(f"{job_id}: {figure}")
    return Findings(
        inputs=len(texts),
        lost=len(wanted_vectors - set(outcomes)) if has_ended else len(texts),
        duplicated=sum((outcomes + refused).values()) - len(outcomes + refused),
        misaligned=misaligned,
        duplicate_ledger=max(0, snapshot.inputs_in_ledger - len({texts[index] for index in outcomes})),
        unbalanced=len(unbalanced),
        repeated=bill.repeated,
    )


@dataclass(frozen=True)
class Bill:
    """What the upstream charges for the texts of one job. Duplicates are one text, which is embedded once."""

    times: Counter[str]  # how often it embedded each text
    tokens: int
    # Calls of which a part may have been recorded after another call had brought the rest. Nobody but the upstream
    # knows what each input of a call cost, so such a part is charged its share by number.
    shared: Sequence[Sequence[str]]

    @classmethod
    def of(cls, stack: Stack, texts: Sequence[str]) -> Bill:
        text_of = {input_hash(text, UPSTREAM_MODEL): text for text in texts}
        lines = stack.calls_with(text_of)
        calls = [[text_of[name] for name in line["input_hashes"] if name in text_of] for line in lines]
        by_text: dict[str, set[int]] = defaultdict(set)
        for number, call in enumerate(calls):
            for text in call:
                by_text[text].add(number)
        shared = [
            call
            for number, call in enumerate(calls)
            if any(not set(calls[other]) >= set(call) for text in call for other in by_text[text] - {number})
        ]
        times = Counter(text for call in calls for text in call)
        return cls(times, sum(line["tokens"] for line in lines), shared)

    @property
    def repeated(self) -> int:
        return sum(self.times.values()) - len(self.times)

    @property
    def doubt_tokens(self) -> int:
        """By how much the ledger may differ from the tokens of what was recorded; 0 where no calls overlapped."""
        return sum(_most_off_by_number([fake_tokens(text) for text in call]) for call in self.shared)


def _most_off_by_number(tokens: Sequence[int]) -> int:
    """How wrong the share by number can be, whichever part of a call it is for: the dearest or the cheapest inputs."""
    mean = sum(tokens) / len(tokens)
    off = np.cumsum(np.sort(np.asarray(tokens, dtype=float)) - mean)
    return int(np.ceil(np.abs(off).max() + 0.5))


def unbalanced_figures(snapshot: DatabaseSnapshot, texts: Sequence[str], bill: Bill) -> list[str]:
    """What does not add up in a job that has ended: outcomes, counters, ledger and the upstream's bill (I4)."""
    found = snapshot.unbalanced()
    embedded = {texts[index] for index in snapshot.with_vector}
    if snapshot.inputs_in_ledger != len(embedded):
        found.append(f"the ledger is of {snapshot.inputs_in_ledger} inputs, and {len(embedded)} texts have vectors")
    tokens, in_ledger, doubt = sum(map(fake_tokens, embedded)), snapshot.tokens_in_ledger, bill.doubt_tokens
    if abs(in_ledger - tokens) > doubt:
        found.append(f"the ledger is of {in_ledger} tokens, and the vectors' texts have {tokens}, give or take {doubt}")
    # Each share's tokens are rounded to whole ones, its cost is not.
    usd_per_token = Decimal(PRICE) / 1_000_000
    if abs(snapshot.cost_in_ledger - in_ledger * usd_per_token) > usd_per_token * len(bill.shared):
        found.append(f"the ledger's cost of {snapshot.cost_in_ledger} USD is not that of {in_ledger} tokens")
    if unknown := len(embedded - bill.times.keys()):
        found.append(f"{unknown} texts have vectors that the upstream was never asked for")
    asked = sum(times * fake_tokens(text) for text, times in bill.times.items())
    if bill.tokens != asked:
        found.append(f"the bill is of {bill.tokens} tokens, for {asked}")
    return found + _beside_the_bill(snapshot, bill)


def _beside_the_bill(snapshot: DatabaseSnapshot, bill: Bill) -> list[str]:
    """Where the upstream's bill is not what was delivered and wasted, and at the most what is ambiguous beside it.

    Calls with a text of ours are on no job's bill; what was estimated may be off by as much as it is.
    """
    wasted = [row for row in snapshot.of_kind(UsageKind.WASTED) if not _is_control_call(row)]
    estimated = sum(row.prompt_tokens for row in wasted if row.estimated)
    known = snapshot.tokens_in_ledger + sum(row.prompt_tokens for row in wasted)
    # The cost of an ambiguous row is of the most tokens that it can have had.
    most = total_usd(snapshot.of_kind(UsageKind.AMBIGUOUS)) * 1_000_000 / Decimal(PRICE)
    if known - estimated <= bill.tokens <= known + most:
        return []
    in_vain: Counter[str | None] = Counter()
    for row in wasted:
        in_vain[row.code] += row.prompt_tokens
    return [
        f"the bill is of {bill.tokens} tokens, and the ledger of {known}, {estimated} of them estimated, + {most}; "
        f"wasted: {dict(in_vain)}"
    ]


def _is_control_call(row: Any) -> bool:
    """True for a call with the text of ours: by its code, or by its size where its reply was refused."""
    return bool(row.code == CONTROL_CALL or (row.inputs == 1 and row.prompt_tokens == fake_tokens(CONTROL_TEXT)))


def check(stack: Stack, job_id: str, texts: Sequence[str], *, processes_killed: int = 0) -> Findings:
    """Check everything about a job that had to succeed."""
    job = stack.job(job_id)
    count = len(texts)
    tokens = [fake_tokens(text) for text in texts]
    assert job["status"] == "completed", job
    counts = {name: job["counts"][name] for name in ("total", "completed", "failed", "pending")}
    assert counts == {"total": count, "completed": count, "failed": 0, "pending": 0}
    assert (job["progress"], job["errors"], job["model"]) == (1.0, [], MODEL)
    assert job["usage"] == {"prompt_tokens": sum(tokens), "total_tokens": sum(tokens)}
    delivered_usd = Decimal(job["cost_usd"]) - Decimal(job["wasted"]["cost_usd"])
    assert delivered_usd == sum(tokens) * Decimal(PRICE) / 1_000_000

    expected = fake_vectors(texts, WIDTH, UPSTREAM_MODEL)
    answer = stack.api.get(f"/v1/embeddings/jobs/{job_id}/results", params={"format": "npy"})
    assert answer.headers["x-embedmill-complete"] == "true"
    assert np.array_equal(np.load(io.BytesIO(answer.content)), expected)

    snapshot = read_snapshot(stack, job_id)
    snapshot.check(lambda indexes: expected[indexes[0] : indexes[-1] + 1])
    assert sorted(snapshot.with_vector) == list(range(count))
    findings = judge(stack, job_id, texts, patience_s=SWEPT_WITHIN_S if processes_killed else 0.0)
    assert findings.is_clean, findings
    assert findings.repeated <= processes_killed * REPEATS_PER_KILL, f"{findings.repeated} inputs were embedded again"
    return findings


def read_snapshot(stack: Stack, job_id: str) -> DatabaseSnapshot:
    async def read() -> DatabaseSnapshot:
        database = Database(Settings(database_url=stack.database_url).sqlalchemy_url)
        try:
            return await DatabaseSnapshot.read(database, job_id)
        finally:
            await database.close()

    return run_async(read())


def watch_history(stack: Stack) -> None:
    """Have the database itself write down every change of a job's status, in a table of ours."""
    if stack.database_url.startswith("sqlite"):
        stack.query("CREATE TABLE IF NOT EXISTS witness (job_id TEXT, was TEXT, became TEXT)")
        stack.query(
            "CREATE TRIGGER IF NOT EXISTS witness_jobs AFTER UPDATE OF status ON jobs WHEN OLD.status <> NEW.status "
            "BEGIN INSERT INTO witness VALUES (NEW.id, OLD.status, NEW.status); END"
        )
        return
    stack.query("CREATE TABLE IF NOT EXISTS witness (job_id TEXT, was TEXT, became TEXT)")
    stack.query(
        "CREATE OR REPLACE FUNCTION witness_job() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO witness VALUES (NEW.id, OLD.status, NEW.status); RETURN NEW; END $$"
    )
    stack.query(
        "CREATE OR REPLACE TRIGGER witness_jobs AFTER UPDATE OF status ON jobs FOR EACH ROW "
        "WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION witness_job()"
    )


def check_history(stack: Stack, *, retried: Collection[str] = ()) -> None:
    """No illegal move, and none out of a final state except of jobs whose caller asked for another try (I7)."""
    for job_id, was, became in stack.query("SELECT job_id, was, became FROM witness"):
        assert JobStatus(became) in LEGAL_MOVES[JobStatus(was)], f"{job_id} went from {was} to {became}"
        assert JobStatus(was) not in FINISHED or job_id in retried, f"{job_id} went from {was} to {became}"


def check_secrets(stack: Stack, job_id: str, texts: Sequence[str]) -> None:
    """Neither an input nor a key is anywhere but in the database (I9)."""
    secrets = {text.encode() for text in (*texts[:3], texts[-1], stack.key, UPSTREAM_KEY) if text}
    places = {str(path): path.read_bytes() for path in stack.folder.rglob("*.log")}
    places["/metrics"] = stack.api.get("/metrics").content
    places["the job object"] = stack.api.get(f"/v1/embeddings/jobs/{job_id}").content
    places["the broker"] = b"".join(_broker_contents(stack.broker_url))
    for place, content in places.items():
        assert not [secret for secret in secrets if secret in content], f"{place} tells a secret"


def _broker_contents(url: str) -> Iterator[bytes]:
    with redis.Redis.from_url(url, socket_timeout=5.0) as client:
        for key in client.scan_iter():
            yield key
            yield client.dump(key) or b""


def check_strangers(stack: Stack, job_id: str) -> None:
    """A caller of another project is told that there is no such job, whatever it asks for (I8)."""
    with httpx.Client(base_url=stack.url, headers=stack.stranger, timeout=30, trust_env=False) as stranger:
        place = f"/v1/embeddings/jobs/{job_id}"
        answers = [
            stranger.get(place),
            stranger.get(f"{place}/results"),
            stranger.post(f"{place}/cancel"),
            stranger.delete(place),
        ]
        assert [answer.status_code for answer in answers] == [404] * len(answers)
        assert job_id not in stranger.get("/v1/embeddings/jobs").text
