"""`embedmill files` and `batches` with real processes: from a file of requests to its answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest

from providers.fake import fake_vectors
from tests.system.processes import EMBEDMILL
from tests.system.proxy import Proxy
from tests.system.stack import MODEL, UPSTREAM_MODEL, WIDTH, Stack
from tests.waiting import wait_until

COMMAND_S = 100.0
BYTES_PER_S = 400_000.0

pytestmark = pytest.mark.timeout(300)


def request_line(custom_id: str, text: Any, **body: Any) -> bytes:
    request = {"model": MODEL, "input": text} | body
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": request})


class Shell:
    """The command line in a folder of its own, with a line to the API that can be slow."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        address = urlsplit(stack.url)
        self.line = Proxy(address.hostname or "", address.port or 0)
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")},
            "EMBEDMILL_API_KEY": stack.key,
            "EMBEDMILL_URL": f"http://127.0.0.1:{self.line.port}",
        }

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*EMBEDMILL, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0) -> bytes:
        """What the command prints on stdout."""
        with self.start(*arguments) as process:
            printed, said = process.communicate(timeout=COMMAND_S)
        assert process.returncode == code, said
        return printed


@pytest.fixture
def shell(stack: Stack, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(stack, tmp_path)
    yield shell
    shell.line.close()


def test_one_command_from_requests_to_answers(shell: Shell) -> None:
    texts = [f"request {number}" for number in range(600)]
    lines = [request_line(f"row-{number}", text) for number, text in enumerate(texts)]
    lines[7] = request_line("row-7", "")
    (shell.folder / "in.jsonl").write_bytes(b"\n".join(lines))
    batch_id = (
        shell.run("batches", "create", "in.jsonl", "--out", "results", "--metadata", "a=b", code=3).decode().strip()
    )
    answers = [orjson.loads(line) for line in (shell.folder / "results" / f"{batch_id}_output.jsonl").open("rb")]
    [failure] = [orjson.loads(line) for line in (shell.folder / "results" / f"{batch_id}_error.jsonl").open("rb")]
    assert failure["custom_id"] == "row-7"
    del texts[7]
    assert [each["custom_id"] for each in answers] == [f"row-{number}" for number in range(600) if number != 7]
    vectors = [each["response"]["body"]["data"][0]["embedding"] for each in answers]
    assert np.allclose(np.asarray(vectors, dtype=np.float32), fake_vectors(texts, WIDTH, UPSTREAM_MODEL), atol=1e-6)
    shell.run("batches", "download", batch_id, "--out", "again.jsonl", "--errors", "failed.jsonl", code=3)
    for name, copy in (("output", "again.jsonl"), ("error", "failed.jsonl")):
        assert (shell.folder / copy).read_bytes() == (
            shell.folder / "results" / f"{batch_id}_{name}.jsonl"
        ).read_bytes()


def test_validate_finds_what_the_server_finds(shell: Shell) -> None:
    lines = [
        request_line("a", "text"),
        b"",
        b"not json",
        request_line("b", "text").replace(b"/v1/embeddings", b"/v1/responses"),
        request_line("c", "text").replace(b"POST", b"GET"),
        request_line("d", "text", stream=True),
        request_line("a", "again"),
        b'{"custom_id":"e","method":"POST","url":"/v1/embeddings","body":{"input":"no model"}}',
        b'{"method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"no id"}}',
        b"[]",
        b'{"custom_id":"f\xff"}',
        request_line("g", []),
        request_line("h", "text", encoding_format="hex"),
        request_line("", "text"),
        b'{"custom_id":"i","method":"POST","url":"/v1/embeddings","body":"text"}',
    ]
    (shell.folder / "in.jsonl").write_bytes(b"\n".join(lines))
    found = [orjson.loads(line) for line in shell.run("files", "validate", "in.jsonl", "--json", code=3).splitlines()]
    local = sorted((each["line"], each["code"]) for each in found if each["fails_batch"])
    batch_id = shell.run("batches", "create", "in.jsonl", "--wait", code=1).decode().strip()
    batch = orjson.loads(shell.run("batches", "show", batch_id))
    assert local == sorted((each["line"], each["code"]) for each in batch["errors"]["data"])
    assert len(local) == 11


def test_an_upload_outwaits_an_api_that_is_killed(shell: Shell, stack: Stack) -> None:
    content = b"\n".join(request_line(str(number), "text " * 20) for number in range(5000))
    (shell.folder / "in.jsonl").write_bytes(content)
    before = len(orjson.loads(shell.run("files", "list", "--json", "--limit", "100"))["data"])
    shell.line.to_server.bytes_per_s = BYTES_PER_S
    process = shell.start("files", "upload", "in.jsonl")
    wait_until(lambda: stack.query("select 1 from file_parts where owner_id is null"), 60, every_s=0.02, what="a part")
    stack.restart("api")
    shell.line.to_server.clear()
    printed, said = process.communicate(timeout=COMMAND_S)
    assert process.returncode == 0, said
    file_id = printed.decode().strip()
    assert shell.run("files", "download", file_id) == content
    assert len(orjson.loads(shell.run("files", "list", "--json", "--limit", "100"))["data"]) == before + 1
