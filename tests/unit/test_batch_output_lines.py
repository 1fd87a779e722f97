"""Lines of batch output: OpenAI's shapes, numbers that read back as the same float32, ids that a rewrite repeats."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.http.errors import status_of as status_of_error
from engine.batches.output_lines import (
    CANCELLED,
    EXPIRED,
    LineError,
    failure_line,
    json_text,
    line_ids,
    share,
    status_of,
    success_line,
)
from models.embedding import Matrix
from models.errors import DeadlineExceeded, EmbedmillError, NoRoute, Overloaded, StorageRefused, UpstreamError

BATCH = "batch_0123456789abcdef0123456789abcdef"
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def line_of(rows: list[Matrix], *, base64: bool = False, custom_id: str = "a", **fields: Any) -> dict[str, Any]:
    text = success_line(BATCH, 7, custom_id, "openai/small", rows, base64=base64, tokens=5, **fields)
    assert text.endswith(b"\n") and text.count(b"\n") == 1
    document: dict[str, Any] = json.loads(text)
    return document


def matrix(*values: float) -> Matrix:
    return np.array(values, dtype="<f4")


def test_a_success_has_the_shape_of_openai() -> None:
    line = line_of([matrix(0.5, -0.25)])
    assert list(line) == ["id", "custom_id", "response", "error"] and line["error"] is None
    assert line["id"].startswith("batch_req_") and len(line["id"]) == len("batch_req_") + 32
    response = line["response"]
    assert list(response) == ["status_code", "request_id", "body"] and response["status_code"] == 200
    assert len(response["request_id"]) == 32 and int(response["request_id"], 16)
    assert response["body"] == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "model": "openai/small",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        "providerMetadata": {"gateway": {"usageEstimated": True}},
    }


def test_a_request_of_several_inputs_is_one_line_in_their_order() -> None:
    line = line_of([matrix(1, 0), matrix(0, 1), matrix(-1, 0)], truncated={1})
    data = line["response"]["body"]["data"]
    assert [item["index"] for item in data] == [0, 1, 2]
    assert [item["embedding"] for item in data] == [[1, 0], [0, 1], [-1, 0]]
    assert [item.get("truncated") for item in data] == [None, True, None]


def test_base64_is_little_endian_float32() -> None:
    row = matrix(0.1, -2.5e-30, 3e38)
    text = line_of([row], base64=True)["response"]["body"]["data"][0]["embedding"]
    assert base64.b64decode(text, validate=True) == row.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=40))
def test_each_number_reads_back_as_the_same_float32(values: list[float]) -> None:
    row = np.array(values, dtype="<f4")
    embedding = line_of([row])["response"]["body"]["data"][0]["embedding"]
    assert all(isinstance(number, int | float) for number in embedding)
    assert np.array(embedding, dtype="<f4").tobytes() == row.tobytes()


def test_all_magnitudes_read_back_as_the_same_float32() -> None:
    bits = np.random.default_rng(7).integers(0, 2**32, 200_000, dtype=np.uint32)
    row = bits.view("<f4")
    row = row[np.isfinite(row)]
    embedding = line_of([row])["response"]["body"]["data"][0]["embedding"]
    assert np.array(embedding, dtype="<f4").tobytes() == row.tobytes()


def test_a_failure_is_readable_in_the_error_and_in_the_response() -> None:
    error = LineError("input_too_long", "Invalid 'input[3]': too long.", "input[3]", 400)
    line = json.loads(failure_line(BATCH, 9, "x", error))
    assert list(line) == ["id", "custom_id", "response", "error"] and line["custom_id"] == "x"
    assert line["response"]["status_code"] == 400 and len(line["response"]["request_id"]) == 32
    assert line["response"]["body"] == {
        "error": {
            "message": error.message,
            "type": "invalid_request_error",
            "param": "input[3]",
            "code": "input_too_long",
        }
    }
    assert line["error"] == {"code": "input_too_long", "message": error.message, "param": "input[3]", "line": 9}


@pytest.mark.parametrize(("status", "kind"), [(400, "invalid_request_error"), (429, "requests"), (502, "server_error")])
def test_the_type_of_an_error_follows_its_status(status: int, kind: str) -> None:
    line = json.loads(failure_line(BATCH, 1, None, LineError("c", "m", None, status)))
    assert line["response"]["body"]["error"]["type"] == kind and line["custom_id"] is None


@pytest.mark.parametrize(("code", "message"), [EXPIRED, CANCELLED])
def test_a_request_that_did_not_run_has_no_response(code: str, message: str) -> None:
    line = json.loads(failure_line(BATCH, 1, "x", LineError(code, message, status=None)))
    assert line["response"] is None and (line["error"]["code"], line["error"]["message"]) == (code, message)


def test_ids_depend_on_the_batch_and_the_line_alone() -> None:
    assert line_ids(BATCH, 7) == line_ids(BATCH, 7)
    ids = [part for batch in (BATCH, "batch_other") for line in range(500) for part in line_ids(batch, line)]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("text", ["", 'q"\\', "tab\t\n\x1e", "ü\u0085\u2028\u2029end", "\U0001f600", "\x7f"])
def test_no_string_holds_what_a_reader_takes_for_the_end_of_a_line(text: str) -> None:
    encoded = json_text(text)
    assert json.loads(encoded) == text and len(encoded.decode().splitlines()) <= 1
    whole = success_line(BATCH, 1, text, text, [matrix(1)], base64=False, tokens=1).decode()
    assert len(whole.splitlines()) == 1
    assert len(failure_line(BATCH, 1, text, LineError(text, text, text)).decode().splitlines()) == 1


@given(st.lists(st.integers(0, 10_000), max_size=30), st.integers(0, 10**12))
def test_shares_sum_to_the_whole(weights: list[int], amount: int) -> None:
    total = sum(weights)
    shares = [share(amount, sum(weights[:i]), weight, total) for i, weight in enumerate(weights)]
    assert all(part >= 0 for part in shares) and sum(shares) == (amount if total else 0)


def test_every_error_of_ours_has_a_status() -> None:
    def kinds(kind: type[EmbedmillError]) -> set[type[EmbedmillError]]:
        return {kind}.union(*map(kinds, kind.__subclasses__()))

    # Of an input, these mean that the provider refused its text: the sync route answers with 400 to that.
    of_callers = {"upstream_rejected", "upstream_too_large"}
    for kind in kinds(UpstreamError) | kinds(NoRoute) | {DeadlineExceeded, Overloaded, StorageRefused}:
        assert kind.code in of_callers or status_of(kind.code) == status_of_error(kind("")), kind
    assert (status_of("input_too_long"), status_of("empty_input"), status_of("worker_lost")) == (400, 400, 500)
