"""The official OpenAI package for Node against a running server. It decodes base64 blindly, so bits must be right."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from models.embedding import Input
from providers.fake import fake_vectors
from tests.contract.conftest import Server
from tests.gateway import WIDTH

SCRIPT = Path(__file__).with_name("openai_node.mjs")


@pytest.fixture(scope="module")
def seen(node_packages: Path, server: Server) -> dict[str, Any]:
    command = ["node", str(SCRIPT), str(node_packages), server.base_url, server.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def packed(rows: Any) -> bytes:
    return np.array(rows, dtype=np.float32).tobytes()


def right(inputs: list[Input], width: int = WIDTH) -> bytes:
    return fake_vectors(inputs, width, "up").tobytes()


def test_as_everyone_calls_it(seen: dict[str, Any]) -> None:
    assert packed(seen["single"]) == right(["hello"])
    assert seen["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


def test_a_list_in_order(seen: dict[str, Any]) -> None:
    assert seen["indexes"] == list(range(300))
    assert packed(seen["list"]) == right([f"text {i}" for i in range(300)])


def test_encodings(seen: dict[str, Any]) -> None:
    assert packed(seen["float"]) == right(["a", "b"])
    # Node decodes whatever encoding it was told of only when it chose it itself.
    assert b"".join(base64.b64decode(each) for each in seen["base64"]) == right(["a", "b"])


def test_dimensions_and_token_arrays(seen: dict[str, Any]) -> None:
    assert packed(seen["narrow"]) == right(["a"], 4)
    assert packed(seen["tokens"]) == right([[1, 2, 3], [4]])


def test_request_ids(seen: dict[str, Any]) -> None:
    shown, sent = seen["requestId"]
    assert shown == sent and re.fullmatch("req_[0-9a-f]{32}", sent)


def test_listing_models_ends(seen: dict[str, Any]) -> None:
    assert seen["model"] == "tiny" and "local/wordllama-256" in seen["models"]
    assert len(set(seen["models"])) == len(seen["models"])


@pytest.mark.parametrize(
    ("case", "name", "status", "param", "code"),
    [
        ("badRequest", "BadRequestError", 400, "input[1]", "empty_input"),
        ("dimensions", "BadRequestError", 400, "dimensions", "invalid_value"),
        ("unknownModel", "NotFoundError", 404, "model", "model_not_found"),
        ("badKey", "AuthenticationError", 401, None, "invalid_api_key"),
        ("upstream", "InternalServerError", 502, None, "upstream_error"),
    ],
)
def test_errors_are_the_packages_own(
    seen: dict[str, Any], case: str, name: str, status: int, param: str | None, code: str
) -> None:
    error = seen[case]
    assert (error["name"], error["status"], error["param"], error["code"]) == (name, status, param, code)
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert re.fullmatch("req_[0-9a-f]{32}", error["requestID"])
