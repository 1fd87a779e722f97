"""`embedmill models endpoints MODEL`: one line a route, and why a route is not called."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cli.client.api_client import endpoints_path
from cli.client.types import Endpoint
from cli.output.model_table import print_endpoints

ENDPOINT: dict[str, Any] = {
    "provider": "first", "kind": "openai", "upstream_model": "up", "priority": 2, "weight": 1,
    "pricing": {"input": "0.00000002"}, "status": "up",
    "breaker": {"state": "closed", "reason": None, "next_attempt_at": None},
    "latency_ms": {"p50": 12.4, "p95": 80.6, "scope": "process"},
    "success_rate": {"15m": None, "1h": 0.985, "1d": 1.0, "scope": "process"},
    "quota": {"requests_per_minute": {"limit": 5000, "remaining": 4321}, "tokens_per_minute": {"limit": 900_000}},
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], *endpoints: dict[str, Any]) -> str:
    print_endpoints([msgspec.convert(each, Endpoint) for each in endpoints])
    return capsys.readouterr().out


def test_a_route_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, ENDPOINT).split())
    for part in ("first", "0.02", "12 / 81", "4,321 of", "5,000", "900,000"):
        assert part in text
    assert "98.5%" in text and "100.0%" in text


@pytest.mark.parametrize(("state", "word"), [("open", "down"), ("half_open", "probing")])
def test_the_reason_of_a_route_that_is_not_called_is_below(
    capsys: pytest.CaptureFixture[str], state: str, word: str
) -> None:
    down = ENDPOINT | {"status": "down", "breaker": {"state": state, "reason": "it answered 500 [x]"}}
    text = shown(capsys, down, ENDPOINT)
    assert word in text and "first, up: it answered 500 [x]" in text


def test_the_path_of_a_name_keeps_its_slashes_and_quotes_the_rest() -> None:
    assert endpoints_path("team/ti ny?") == "/v1/models/team/ti%20ny%3F/endpoints"
