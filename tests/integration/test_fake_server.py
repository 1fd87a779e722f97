"""The fake upstream as a process: how it delivers faults, and the bill that it keeps."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from providers.fake import fake_vectors, input_hash

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def bill(tmp_path: Path) -> Path:
    return tmp_path / "bill.ndjson"


@contextmanager
def served(bill: Path, *options: str) -> Iterator[tuple[httpx.Client, str]]:
    """A client of the fake's host, and the path that the fake says its addresses begin with."""
    command = [sys.executable, "-m", "cli.fake_upstream", "--log", str(bill), "--log-inputs", "--width", "8", *options]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            url = re.search(r"(http://[^/\s]+)(\S*)", said)
            assert url, said
            with httpx.Client(base_url=url[1], timeout=0.5) as client:
                yield client, url[2]
        finally:
            process.terminate()
            process.wait(5)
    assert process.returncode == 0


@pytest.fixture
def server(bill: Path) -> Iterator[httpx.Client]:
    with served(bill) as (client, base_path):
        assert base_path == "/v1"
        yield client


def ask(server: httpx.Client, *inputs: str) -> httpx.Response:
    return server.post("/v1/embeddings", json={"model": "m", "input": inputs})


def script(server: httpx.Client, *rules: object) -> None:
    assert server.put("/__script", json=rules).status_code == 200


def test_every_answer_is_on_the_bill(server: httpx.Client, bill: Path) -> None:
    for inputs in (("a",), ("b" * 9000, "c"), ("d" * 300_000 * 4,)):
        answer = ask(server, *inputs)
        if answer.status_code == 200:
            rows = np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)
            assert rows.tobytes() == fake_vectors(inputs, 8, "m").tobytes()
    lines = [orjson.loads(line) for line in bill.read_bytes().splitlines()]
    assert [(line["inputs"], line["tokens"], line["fault"]) for line in lines] == [(1, 1, None), (2, 2251, None)]
    assert lines[1]["input_hashes"] == [input_hash("b" * 9000, "m"), input_hash("c", "m")]
    stats = server.get("/__stats").json()
    assert (stats["calls"], stats["billed_inputs"], stats["faults"]) == (3, 3, {"400": 1})
    assert server.get("/healthz").status_code == 200


def test_faults_of_delivery(server: httpx.Client, bill: Path) -> None:
    script(
        server,
        *({"times": 1, "do": {"fault": fault}} for fault in ("close", "reset", "truncate", "hang")),
        {"times": 1, "do": {"slow_body_ms": 50, "latency_ms": 50}},
        {"times": 1, "do": {"status": 503, "retry_after": "Wed, 21 Oct 2026 07:28:00 GMT"}},
    )
    for error in (httpx.RemoteProtocolError, httpx.ReadError, httpx.RemoteProtocolError, httpx.ReadTimeout):
        with pytest.raises(error):
            ask(server, "a")
    slow = ask(server, "a")
    assert slow.elapsed.total_seconds() >= 0.1 and slow.json()["usage"]["total_tokens"] == 1
    refused = ask(server, "a")
    assert refused.headers["retry-after"].startswith("Wed") and "date" in refused.headers
    faults = [orjson.loads(line)["fault"] for line in bill.read_bytes().splitlines()]
    assert faults == ["truncate", None]


def test_a_wrong_script_changes_nothing(server: httpx.Client) -> None:
    answer = server.put("/__script", json=[{"do": {"falt": 1}}])
    assert answer.status_code == 400 and "falt" in answer.json()["error"]["message"]
    assert server.get("/__script").json() == [] and ask(server, "a").status_code == 200


def test_another_vendors_format_at_that_vendors_path(bill: Path) -> None:
    body = {"model": "m", "texts": ["a", "b"], "input_type": "search_query", "embedding_types": ["float"]}
    with served(bill, "--kind", "cohere", "--api-key", "k", "--space", "shared") as (client, base_path):
        assert base_path == ""
        assert client.post("/v2/embed", json=body).status_code == 401
        answer = client.post("/v2/embed", json=body, headers={"authorization": "Bearer k"})
        assert client.post("/v1/embeddings", json=body, headers={"authorization": "Bearer k"}).status_code == 404
    rows = np.array(answer.json()["embeddings"]["float"], dtype=np.float32)
    assert rows.tobytes() == fake_vectors(["a", "b"], 8, "shared", "query").tobytes()
    assert [orjson.loads(line)["inputs"] for line in bill.read_bytes().splitlines()] == [2]
