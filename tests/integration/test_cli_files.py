"""`embedmill files`, `batches` and `webhooks` as commands: what they print where, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli_fake_api import serving
from tests.cli_fake_files import BATCH_ID, ENDPOINT_ID, EVENTS, SECRET, FakeFilesApi

LINE = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"text"}}\n'


@pytest.fixture
def api() -> FakeFilesApi:
    return FakeFilesApi()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in.jsonl").write_bytes(LINE)
    return tmp_path


def ran(api: FakeFilesApi, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with serving(api) as url:
        command = [sys.executable, "-m", "cli", *arguments, "--url", url, "--api-key", "em_key"]
        environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "/usr/bin:/bin"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def printed(api: FakeFilesApi, folder: Path, *arguments: str, code: int = 0) -> str:
    """What the command prints on stdout."""
    result = ran(api, folder, *arguments)
    assert result.returncode == code, result.stderr
    return result.stdout


def test_a_file_from_upload_to_removal(api: FakeFilesApi, folder: Path) -> None:
    file_id = printed(api, folder, "files", "upload", "in.jsonl", "--expires-after", "2h").strip()
    assert api.contents[file_id] == LINE
    listed = printed(api, folder, "files", "list")
    assert file_id in listed and "in.jsonl" in listed and "batch" in listed
    assert json.loads(printed(api, folder, "files", "list", "--json"))["data"][0]["id"] == file_id
    assert json.loads(printed(api, folder, "files", "show", file_id))["bytes"] == len(LINE)
    assert printed(api, folder, "files", "download", file_id) == LINE.decode()
    assert printed(api, folder, "files", "download", file_id, "--out", "copy") == ""
    assert (folder / "copy").read_bytes() == LINE
    assert "nothing was done" in ran(api, folder, "files", "delete", file_id).stderr
    assert printed(api, folder, "files", "delete", file_id, "--yes") == f"{file_id} is removed\n"
    assert not api.files


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["files", "upload", "nope.jsonl"], 2),
        (["files", "upload", "in.jsonl", "--expires-after", "soon"], 2),
        (["files", "upload", "in.jsonl", "--purpose", "vision"], 2),
        (["files", "show", "file-../../x"], 2),
        (["files", "show", "file-0"], 1),
        (["files", "download", "file-0", "--out", "no/such/folder"], 2),
        (["batches", "create", "nope.jsonl"], 2),
        (["batches", "create", "in.jsonl", "--metadata", "novalue"], 2),
        (["batches", "create", "in.jsonl", "--out", "in.jsonl"], 2),
        (["batches", "show", "batch_0"], 1),
        (["webhooks", "replay", ENDPOINT_ID], 2),
        (["webhooks", "replay", ENDPOINT_ID, "evt_1", "--all-dead"], 2),
        (["webhooks", "show", "we_0"], 1),
    ],
)
def test_what_cannot_be_is_refused(api: FakeFilesApi, folder: Path, arguments: list[str], code: int) -> None:
    result = ran(api, folder, *arguments)
    assert result.returncode == code
    # One line each, where typer does not draw a box around it.
    assert result.stderr.startswith(("error: ", "Usage: "))


def test_a_batch_from_a_file_to_its_results(api: FakeFilesApi, folder: Path) -> None:
    output, error = api.add_file(b"answers\n", "out", "batch_output"), api.add_file(b"errors\n", "err", "batch_output")
    counts = {"total": 4, "completed": 3, "failed": 1}
    api.final = {"status": "completed", "request_counts": counts, "output_file_id": output, "error_file_id": error}
    options = ["--lenient", "--metadata", "team=search", "--completion-window", "2h", "--out", "results"]
    result = ran(api, folder, "batches", "create", "in.jsonl", *options)
    assert result.returncode == 3, result.stderr
    assert result.stdout == f"{BATCH_ID}\n"
    assert api.batch["metadata"] == {"team": "search", "embedmill_validation": "lenient"}
    assert api.batch["completion_window"] == "2h"
    assert api.contents[api.batch["input_file_id"]] == LINE
    assert (folder / "results" / f"{BATCH_ID}_output.jsonl").read_bytes() == b"answers\n"
    assert (folder / "results" / f"{BATCH_ID}_error.jsonl").read_bytes() == b"errors\n"
    assert f"{BATCH_ID} completed: 4/4 · 100% · 1 failed" in " ".join(result.stderr.split())
    assert printed(api, folder, "batches", "download", BATCH_ID, code=3) == "answers\n"
    assert printed(api, folder, "batches", "download", BATCH_ID, "--out", "o", "--errors", "-", code=3) == "errors\n"
    assert BATCH_ID in printed(api, folder, "batches", "list")


def test_a_batch_of_a_file_that_is_there_needs_no_upload(api: FakeFilesApi, folder: Path) -> None:
    file_id = api.add_file(LINE, "in.jsonl")
    assert printed(api, folder, "batches", "create", file_id) == f"{BATCH_ID}\n"
    assert api.batch["input_file_id"] == file_id
    assert len(api.files) == 1
    assert "is validating" in ran(api, folder, "batches", "download", BATCH_ID).stderr
    assert printed(api, folder, "batches", "wait", BATCH_ID) == ""
    assert printed(api, folder, "batches", "cancel", BATCH_ID) == f"{BATCH_ID} is cancelling\n"


@pytest.mark.parametrize(
    ("final", "code", "said"),
    [
        ({"status": "completed"}, 0, "completed: 4/4 · 100%"),
        ({"status": "expired"}, 1, "expired"),
        ({"status": "cancelled"}, 1, "cancelled"),
        (
            {
                "status": "failed",
                "error_count": 30,
                "errors": {"data": [{"line": 3, "code": "invalid_url", "message": "wrong"}] * 12},
            },
            1,
            "line 3: invalid_url: wrong and 20 more: ",
        ),
    ],
)
def test_a_batch_ends_as_its_exit_code_says(
    api: FakeFilesApi, folder: Path, final: dict[str, Any], code: int, said: str
) -> None:
    api.final = final
    result = ran(api, folder, "batches", "create", "in.jsonl", "--wait")
    assert result.returncode == code
    assert said in " ".join(result.stderr.split())


def test_files_validate_needs_no_server(folder: Path) -> None:
    (folder / "in.jsonl").write_bytes(LINE + LINE)
    command = [sys.executable, "-m", "cli", "files", "validate", "in.jsonl"]
    environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3, result.stderr
    assert result.stdout.startswith("line 2: duplicate_custom_id: ")


def test_webhooks(api: FakeFilesApi, folder: Path) -> None:
    made = ran(api, folder, "webhooks", "create", "https://example.com/hook", "--event", "batch.failed")
    assert made.stdout == f"{SECRET}\n"
    assert f"{ENDPOINT_ID} receives batch.failed" in " ".join(made.stderr.split())
    body = json.loads(next(each.content for each in api.requests if each.method == "POST"))
    assert body == {
        "url": "https://example.com/hook",
        "name": "https://example.com/hook",
        "event_types": ["batch.failed"],
    }
    all_types = ran(api, folder, "webhooks", "create", "https://example.com/hook", "--name", "mine", "--json")
    assert json.loads(all_types.stdout)["event_types"] == ["batch.completed", "batch.failed"]
    assert ENDPOINT_ID in printed(api, folder, "webhooks", "list")
    assert json.loads(printed(api, folder, "webhooks", "show", ENDPOINT_ID))["name"] == "mine"
    assert printed(api, folder, "webhooks", "rotate", ENDPOINT_ID, "--keep-old") == f"{SECRET}\n"
    assert printed(api, folder, "webhooks", "test", ENDPOINT_ID).startswith("batch.completed: the receiver answered")
    assert "evt_1" in printed(api, folder, "webhooks", "deliveries", ENDPOINT_ID, "--state", "dead")
    assert printed(api, folder, "webhooks", "replay", ENDPOINT_ID, "evt_7") == "evt_7 is sent again\n"
    assert len(printed(api, folder, "webhooks", "replay", ENDPOINT_ID, "--all-dead").splitlines()) == len(EVENTS)
    assert api.replayed == ["evt_7", *EVENTS]
    assert printed(api, folder, "webhooks", "delete", ENDPOINT_ID, "--yes") == f"{ENDPOINT_ID} is removed\n"
