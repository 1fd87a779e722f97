"""What a caller hears of a provider's 429, which a sync call waits out in real time where no time is named."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_api_provider_faults import CONFIG, TINY
from tests.gateway import Gateway, close_gateway, error_of, open_gateway


@pytest.fixture
async def faulty(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, config=CONFIG)
    yield gateway
    await close_gateway(gateway)


@pytest.mark.parametrize("text", ["own limit", "much later", "names no time"])
@pytest.mark.parametrize("fields", [{}, {"user": "me"}])
async def test_a_429_names_the_account_the_model_and_the_wait(
    faulty: Gateway, text: str, fields: dict[str, Any]
) -> None:
    for _ in range(2):
        reply = await faulty.embed([text], model=TINY, **fields)
        error = error_of(reply)
        assert (reply.status_code, error["code"], error["type"]) == (429, "upstream_rate_limited", "requests")
        told = re.fullmatch(r"Provider account main, model up: (.*); a call may start in (\d+) s", error["message"])
        assert told is not None and "429 (rate limit)" in told[1], error["message"]
        assert reply.headers["retry-after"] == str(min(60, int(told[2])))
    assert (await faulty.embed(["another"], model=TINY)).status_code == 200
