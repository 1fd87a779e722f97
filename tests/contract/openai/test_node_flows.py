"""The main flows around batches by the official OpenAI package for Node, against the same running stack."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from providers.fake import fake_vectors
from tests.contract.openai.openai_server import DAY_S, OpenAIServer

SCRIPT = Path(__file__).with_name("node_flows.mjs")


@pytest.fixture(scope="module")
def seen(node_packages: Path, openai_server: OpenAIServer) -> dict[str, Any]:
    command = ["node", str(SCRIPT), str(node_packages), openai_server.url, openai_server.stack.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def packed(rows: Any) -> bytes:
    return np.array(rows, dtype=np.float32).tobytes()


def test_sync_calls_in_both_encodings(seen: dict[str, Any]) -> None:
    """0.1: Node decodes what it did not choose as base64 blindly: bits must be right, whatever the upstream speaks."""
    right = fake_vectors(["a", "b"], 16, "up").tobytes()
    assert packed(seen["float"]) == right == packed(seen["base64"])
    assert packed(seen["onlyFloats"]) == packed(seen["onlyFloatsPlain"]) and len(seen["onlyFloats"][0]) == 16


def test_files(seen: dict[str, Any]) -> None:
    """2.1: create, retrieve, content, wait for processing, delete; a name that Node chooses for bytes without one."""
    file = seen["file"]
    assert (file["object"], file["filename"], file["purpose"]) == ("file", "requests.jsonl", "batch")
    assert file["status"] == "processed" == seen["processed"] and seen["sameFile"] == file
    assert seen["sameContent"] is True and seen["nameless"]
    assert seen["deleted"]["deleted"] is True and seen["deleted"]["object"] == "file"
    assert (seen["gone"]["name"], seen["gone"]["status"], seen["gone"]["param"]) == ("NotFoundError", 404, "id")


def test_lists_are_paged_to_their_end(seen: dict[str, Any]) -> None:
    """0.4: Node stops at page 1 without has_more: three pages of files and of batches are all seen, each item once."""
    assert seen["listed"] == seen["made"][::-1]
    assert seen["batches"][:4] == seen["newest"] and len(set(seen["batches"])) == len(seen["batches"])


def test_uploads(seen: dict[str, Any]) -> None:
    """2.2: parts at the same time, in the order of part_ids."""
    assert seen["upload"] == ["pending", "completed"]
    assert seen["uploadedContent"] == seen["expectedContent"]


def test_a_batch_to_its_end(seen: dict[str, Any]) -> None:
    """3: created, completed, read from both files."""
    created, batch = seen["created"], seen["batch"]
    assert created["status"] == "validating" and created["expires_at"] == created["created_at"] + DAY_S
    assert batch["status"] == "completed" and batch["metadata"] == {"by": "node"}
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert [each["custom_id"] for each in seen["output"]] == ["a", "b"]
    bodies = [each["response"]["body"] for each in seen["output"]]
    assert packed([item["embedding"] for body in bodies for item in body["data"]]) == (
        fake_vectors(["hello", "x", "y"], 16, "up").tobytes()
    )
    (error,) = seen["errors"]
    assert (error["custom_id"], error["response"]["status_code"]) == ("c", 400) and error["error"]["code"]


def test_errors(seen: dict[str, Any]) -> None:
    """3.1: a cancel that comes too late; an input file that does not exist."""
    assert (seen["tooLate"]["name"], seen["tooLate"]["status"]) == ("ConflictError", 409)
    assert seen["failed"]["status"] == "failed"
    assert seen["failed"]["errors"]["data"][0]["param"] == "file_id"


def test_webhooks(seen: dict[str, Any]) -> None:
    """3.7: client.webhooks.unwrap takes what was delivered, and nothing that is signed with another secret."""
    assert (seen["event"]["type"], seen["event"]["data"]) == ("batch.completed", {"id": seen["batch"]["id"]})
    assert seen["wrongSecret"]["name"] == "InvalidWebhookSignatureError"
    assert seen["endpoint"] in seen["endpoints"] and seen["endpointDeleted"]["deleted"] is True
