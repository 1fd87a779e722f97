"""Several requests on a connection before the first is answered: their order, their bound, and one that is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.api_process import HEALTH, ApiProcess, Reply, flood, is_closed
from tests.gateway import CONFIG
from tests.waiting import wait_until

LIMIT = 64 * 1024


SLOW = orjson.dumps({"model": "tiny", "input": ["slow one"]})
SLOW_CONFIG = CONFIG.replace(
    "script = [", 'script = [\n    { when = { contains = "slow" }, do = { latency_ms = 800 } },', 1
)


@pytest.fixture(scope="module")
def slow(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(migrated, tmp_path_factory.mktemp("slow"), config=SLOW_CONFIG) as api:
        yield api


def slow_call(api: ApiProcess) -> bytes:
    fields = ("Content-Type: application/json", f"Content-Length: {len(SLOW)}")
    return api.head("POST", "/v1/embeddings", *fields) + SLOW


def test_pipelined_requests_are_answered_in_order_up_to_a_bound(slow: ApiProcess) -> None:
    with slow.connect() as connection:
        connection.sendall(slow.head("GET", "/v1/models") + HEALTH * 3)
        assert [len(Reply(connection).body) > 100 for _ in range(4)] == [True, False, False, False]
    with slow.connect() as connection:
        flood(connection, HEALTH * 1_000, 20 * LIMIT)
        statuses = list[int]()
        # The server closes with requests unread, so the kernel resets the connection: the last answers may be lost.
        with suppress(ConnectionError, AssertionError):
            while len(statuses) < 1_000 and not (reply := Reply(connection)).is_last:
                statuses.append(reply.status)
        assert set(statuses) == {200} and len(statuses) < 1_000
        assert is_closed(connection)


@pytest.mark.parametrize("behind", [b"", HEALTH, HEALTH * 3], ids=["alone", "one behind", "three behind"])
def test_a_client_that_hangs_up_ends_the_call_that_is_served(slow: ApiProcess, behind: bytes) -> None:
    """Also when it has sent other requests behind it: the call is cancelled, and nothing is an error of ours."""
    seen = len(slow.log_lines())
    with slow.connect() as connection:
        connection.sendall(slow_call(slow) + behind)

    def ended() -> list[dict[str, Any]]:
        return [line for line in slow.log_lines()[seen:] if line.get("route") == "/v1/embeddings"]

    [line] = wait_until(ended, 10, what="the end of the request")
    assert line["duration_ms"] < 700 and line["status"] == 499
    assert not [line for line in slow.log_lines()[seen:] if line["level"] == "ERROR"]


@pytest.mark.parametrize("behind", [1, 2])
def test_garbage_behind_pipelined_requests_takes_no_answer_from_them(slow: ApiProcess, behind: int) -> None:
    with slow.connect() as connection:
        connection.sendall(slow_call(slow) + HEALTH * behind + b"garbage\r\n\r\n")
        replies = [Reply(connection) for _ in range(1 + behind)]
        assert [reply.status for reply in replies] == [200] * (1 + behind)
        assert replies[-1].is_last and is_closed(connection)
