"""Files become jobs and batches while workers are killed with kill -9 in every step: nothing missing, nothing twice."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import orjson
import pytest

from providers.fake import fake_vectors
from tests.system.stack import MODEL, UPSTREAM_MODEL, WIDTH, Stack
from tests.waiting import wait_until

LINES = 12_000
END_S = 150.0
WIDTHS = (64, 32, 16)
SIZES = f"""
[models."sizes"]
dimensions = {WIDTH}
allowed_dimensions = "1..{WIDTH}"
input_usd_per_million_tokens = "0.02"
verify_spaces = false
[[models."sizes".routes]]
provider = "up"
model = "{UPSTREAM_MODEL}"
"""
Start = Callable[[str], Stack]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a system whose processes die at these failpoints; each token is spent once by all of them together."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    with ExitStack() as stacks:

        def start(failpoints: str) -> Stack:
            rules = failpoints.replace("TOKENS", str(tokens))
            return stacks.enter_context(Stack(tmp_path, settings={"FAILPOINTS": rules}, more_config=SIZES))

        yield start


def upload(stack: Stack, body: bytes, purpose: str, name: str) -> str:
    reply = stack.api.post("/v1/files", data={"purpose": purpose}, files={"file": (name, body)})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def tokens_of(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "tokens").iterdir()}


@pytest.mark.fault(56)
def test_workers_are_killed_while_they_read_a_file(start: Start, tmp_path: Path) -> None:
    stack = start(
        "after_ingest_commit=kill,skip=2,times=2,shared=TOKENS; mid_ingest=kill,skip=1,times=1,shared=TOKENS; "
        "after_ingest_commit=sleep,seconds=0.05"
    )
    texts = [f"line {line // 2 if line % 10 == 1 else line} of a file" for line in range(LINES)]
    body = b"".join(orjson.dumps({"id": f"id-{line}", "text": text}) + b"\n" for line, text in enumerate(texts))
    file_id = upload(stack, body, "user_data", "texts.jsonl")
    reply = stack.api.post("/v1/embeddings/jobs", json={"model": MODEL, "input_file_id": file_id})
    assert reply.status_code == 202, reply.text
    job_id = reply.json()["id"]
    assert stack.api.delete(f"/v1/files/{file_id}").status_code == 200  # whoever deletes it: the job has it
    wait_until(lambda: stack.query("select ingested from jobs where ingested > 0"), 60, what="the first shards")
    stack.restart("worker")
    stack.await_end(job_id, END_S)
    job = stack.job(job_id)
    assert (job["status"], job["counts"]["total"], job["counts"]["completed"]) == ("completed", LINES, LINES)
    assert tokens_of(tmp_path) >= {"after_ingest_commit.0", "after_ingest_commit.1", "mid_ingest.0"}
    vectors = np.load(io.BytesIO(stack.api.get(f"/v1/embeddings/jobs/{job_id}/results?format=npy").content))
    assert np.array_equal(vectors, fake_vectors(texts, WIDTH, UPSTREAM_MODEL))
    lines = stack.api.get(f"/v1/embeddings/jobs/{job_id}/results?encoding_format=base64").content.splitlines()
    assert [orjson.loads(line)["id"] for line in lines] == [f"id-{line}" for line in range(LINES)]
    assert stack.query("select count(*), sum(count) from shards")[0][1] == LINES
    assert stack.query("select count(*) from job_steps") == [(0,)]


@pytest.mark.fault(56)
def test_workers_are_killed_in_every_step_of_a_batch(start: Start, tmp_path: Path) -> None:
    stack = start(
        "during_validation=kill,times=1,shared=TOKENS; mid_ingest=kill,skip=2,times=1,shared=TOKENS; "
        "after_ingest_commit=kill,skip=1,times=1,shared=TOKENS; after_output_part=kill,times=1,shared=TOKENS; "
        "during_output_end=kill,times=1,shared=TOKENS"
    )
    lines = [
        orjson.dumps(
            {
                "custom_id": f"id-{line}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": "sizes", "input": f"request {line}", "dimensions": WIDTHS[line % 3]},
            }
        )
        for line in range(LINES)
    ]
    file_id = upload(stack, b"\n".join(lines), "batch", "requests.jsonl")
    window = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = stack.api.post("/v1/batches", json={"input_file_id": file_id, **window}).json()
    job = stack.api.get(f"/v1/embeddings/jobs/{batch['id']}").json()
    assert (job["id"], job["batch_id"]) == (batch["job_id"], batch["id"])

    def ended() -> bool:
        nonlocal batch
        batch = stack.api.get(f"/v1/batches/{batch['id']}").json()
        return batch["status"] not in ("validating", "in_progress", "finalizing")

    wait_until(ended, END_S, what="the end of the batch")
    assert (batch["status"], batch["request_counts"]) == (
        "completed",
        {"total": LINES, "completed": LINES, "failed": 0},
    )
    places = ("during_validation", "mid_ingest", "after_ingest_commit", "after_output_part", "during_output_end")
    assert tokens_of(tmp_path) == {f"{place}.0" for place in places}
    content = stack.api.get(f"/v1/files/{batch['output_file_id']}/content").content.splitlines()
    assert len(content) == LINES and batch["error_file_id"] is None
    for number, width in enumerate(WIDTHS):
        mine = [orjson.loads(line) for line in content[number::3]]
        assert [line["custom_id"] for line in mine] == [f"id-{line}" for line in range(number, LINES, 3)]
        found = np.array([line["response"]["body"]["data"][0]["embedding"] for line in mine], "f4")
        expected = fake_vectors([f"request {line}" for line in range(number, LINES, 3)], width, UPSTREAM_MODEL)
        assert np.array_equal(found, expected)
    mixed = stack.api.get(f"/v1/embeddings/jobs/{batch['job_id']}/results")
    assert mixed.status_code == 409 and f"/v1/batches/{batch['id']}/results" in mixed.json()["error"]["message"]
