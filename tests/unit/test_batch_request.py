"""The fields of a request for a batch, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.batches.batch_request import BatchRequest, check_request, window_seconds
from engine.config.settings import Settings
from models.errors import RequestError

GOOD: dict[str, Any] = {"endpoint": "/v1/embeddings", "input_file_id": "file-x", "completion_window": "24h"}


def refusal(is_inline: bool = False, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(RequestError) as refused:
        check_request(BatchRequest(**(GOOD | fields)), Settings(), is_inline=is_inline)
    return refused.value.code, refused.value.param


def test_a_plain_request() -> None:
    spec = check_request(BatchRequest(**GOOD), Settings(), is_inline=False)
    assert (spec.window_s, spec.metadata, spec.is_lenient, spec.output_expires_after_s) == (86400, None, False, None)


def test_a_request_with_all_fields() -> None:
    metadata = {"a": "b", "embedmill_validation": "lenient"}
    expiry = {"anchor": "created_at", "seconds": 3600}
    request = BatchRequest(**GOOD, metadata=metadata, output_expires_after=expiry, callback_url="https://x")
    spec = check_request(request, Settings(), is_inline=False)
    assert (spec.metadata, spec.is_lenient, spec.output_expires_after_s) == (metadata, True, 3600)


def test_the_inline_form_needs_no_window_and_takes_a_model() -> None:
    spec = check_request(BatchRequest(endpoint="/v1/embeddings", model="m"), Settings(), is_inline=True)
    assert (spec.completion_window, spec.window_s, spec.default_model) == ("24h", 86400, "m")
    assert refusal(is_inline=True) == ("invalid_value", "input_file_id")
    for model in ("", "m" * 257, "m\0"):
        assert refusal(is_inline=True, input_file_id=None, model=model) == ("invalid_value", "model")


@pytest.mark.parametrize(("text", "seconds"), [("24h", 86400), ("1m", 60), ("90m", 5400), ("720h", 2592000)])
def test_windows(text: str, seconds: int) -> None:
    assert window_seconds(text, 30.0) == seconds


@pytest.mark.parametrize(
    "text", ["", "24", "h", "0h", "0m", "721h", "24H", "1d", "-1h", "1.5h", "24h ", "٢٤h", "9" * 9 + "h"]
)
def test_bad_windows(text: str) -> None:
    if text:
        assert refusal(completion_window=text) == ("invalid_value", "completion_window")
    else:
        assert refusal(completion_window=text) == ("missing_required_parameter", "completion_window")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "invalid_value", "endpoint"),
        ({"endpoint": "nonsense"}, "invalid_value", "endpoint"),
        ({"input_file_id": None}, "missing_required_parameter", "input_file_id"),
        ({"completion_window": None}, "missing_required_parameter", "completion_window"),
        ({"input_file_id": "file\0"}, "invalid_value", "input_file_id"),
        ({"input_file_id": "f" * 65}, "invalid_value", "input_file_id"),
        ({"model": "m"}, "unknown_parameter", "model"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a": ["b"]}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a": None}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a" * 65: "b"}}, "invalid_value", "metadata." + "a" * 64),
        ({"metadata": {"a": "b" * 513}}, "invalid_value", "metadata.a"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"metadata": {"embedmill_validation": "loose"}}, "invalid_value", "metadata.embedmill_validation"),
        ({"metadata": {"embedmill_validation": ""}}, "invalid_value", "metadata.embedmill_validation"),
        ({"output_expires_after": {}}, "missing_required_parameter", "output_expires_after.anchor"),
        (
            {"output_expires_after": {"anchor": "last_active_at", "seconds": 3600}},
            "invalid_value",
            "output_expires_after.anchor",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3599}},
            "invalid_value",
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 2592001}},
            "invalid_value",
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": True}},
            "invalid_value",
            "output_expires_after.seconds",
        ),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3600, "x": 1}},
            "unknown_parameter",
            "output_expires_after.x",
        ),
    ],
)
def test_what_is_refused(fields: dict[str, Any], code: str, param: str) -> None:
    assert refusal(**fields) == (code, param)


def test_limits_of_metadata_are_allowed() -> None:
    metadata = {f"{n:064}": "é" * 512 for n in range(16)}
    spec = check_request(BatchRequest(**GOOD, metadata=metadata), Settings(), is_inline=False)
    assert spec.metadata == metadata
