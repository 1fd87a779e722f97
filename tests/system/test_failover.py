"""A killed upstream whose space has a second route: no sync call fails, and only health probes go to the dead route."""

from __future__ import annotations

import re
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from providers.fake import fake_vectors
from tests.system.many_formats import OPENAI_ACCOUNT, SPACE, ManyFormatsStack, process_of
from tests.system.stack import MODEL, WIDTH
from tests.waiting import wait_until

STAND_IN = "cohere"
CALLERS = 8
CALLS = 400
CALLS_EACH = 2  # of one caller on the dead route: one that was under way, and one that met no connection


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManyFormatsStack]:
    """The OpenAI route is the first choice, the other one its stand-in."""
    with ManyFormatsStack(tmp_path_factory.mktemp("failover"), [STAND_IN], priority=1) as stack:
        yield stack


def call(stack: ManyFormatsStack, text: str) -> float:
    """One sync call, which must come to its text's own vector. How long it took, in seconds."""
    began = time.monotonic()
    answer = stack.api.post("/v1/embeddings", json={"model": MODEL, "input": text})
    took_s = time.monotonic() - began
    assert answer.status_code == 200, answer.text
    row = np.array(answer.json()["data"][0]["embedding"], dtype="<f4")
    assert np.array_equal(row, fake_vectors([text], WIDTH, SPACE)[0])
    return took_s


def calls_to(stack: ManyFormatsStack, account: str) -> tuple[int, int]:
    """Calls to the account so far: those that were answered well, and the others. Health probes are among them."""
    metric = r'^embedmill_upstream_calls_total\{(?=[^}]*provider="%s")[^}]*outcome="(\w+)"[^}]*\} (\S+)$'
    found = re.findall(metric % account, stack.api.get("/metrics").text, re.MULTILINE)
    counts = [(outcome == "ok", int(float(value))) for outcome, value in found]
    return sum(count for is_ok, count in counts if is_ok), sum(count for is_ok, count in counts if not is_ok)


def failed_probes(stack: ManyFormatsStack) -> int | None:
    """Health probes of the first route that have failed in its outage; None where it is not down."""
    rows = stack.query(f"SELECT failures FROM route_outages WHERE account = '{OPENAI_ACCOUNT}'")
    return rows[0][0] if rows else None


def p50_ms(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds) * 1000, 1)


@contextmanager
def black_hole(port: int) -> Iterator[None]:
    """A port on which no connection comes about, and nothing says so: its queue is full, and nobody takes from it."""
    with ExitStack() as opened:
        hole = opened.enter_context(socket.socket())
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind(("127.0.0.1", port))
        hole.listen(0)
        for _ in range(4):
            filling = opened.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(("127.0.0.1", port))
        yield


@pytest.mark.timeout(240)
@pytest.mark.parametrize("is_black_hole", [False, True], ids=["connection refused", "black hole"])
def test_no_sync_call_fails_and_only_probes_go_to_the_dead_route(
    stack: ManyFormatsStack, record_property: Callable[[str, object], None], is_black_hole: bool
) -> None:
    """In a black hole a health probe lasts as long as connecting may, and the calls beside it do not."""
    stack.script_all({"do": {"latency_ms": 20}})
    served, failures = calls_to(stack, OPENAI_ACCOUNT)
    stood_in, _ = calls_to(stack, STAND_IN)
    before_s = [call(stack, f"before {number}") for number in range(100)]
    assert calls_to(stack, OPENAI_ACCOUNT) == (served + 100, failures)

    with ExitStack() as opened:
        callers = opened.enter_context(ThreadPoolExecutor(CALLERS))
        under_way = [callers.submit(call, stack, f"under way {number}") for number in range(CALLS)]
        wait_until(lambda: sum(each.done() for each in under_way) > CALLS // 4, 30, what="a quarter of the calls")
        stack.processes.kill(process_of(OPENAI_ACCOUNT))
        if is_black_hole:
            opened.enter_context(black_hole(stack.fake_port))
        during_s = [each.result() for each in under_way]
        wait_until(lambda: failed_probes(stack) is not None, 30, what="the outage")
        answered, failed = calls_to(stack, OPENAI_ACCOUNT)
        probes = failed_probes(stack) or 0
        assert 1 <= failed - failures <= CALLERS * CALLS_EACH + probes

        after_s: list[float] = []

        def two_more_probes() -> bool:
            after_s.extend(call(stack, f"after {len(after_s) + number}") for number in range(20))
            return (failed_probes(stack) or 0) >= probes + 2

        wait_until(two_more_probes, 60, what="two more health probes")
        now_answered, now_failed = calls_to(stack, OPENAI_ACCOUNT)
        assert now_answered == answered
        wait_until(lambda: (failed_probes(stack) or 0) - probes >= now_failed - failed, 10, what="only probes")
    calls = 100 + CALLS + len(after_s)
    assert calls_to(stack, STAND_IN) == (stood_in + calls - (answered - served), 0)

    stack.processes.start(process_of(OPENAI_ACCOUNT))

    def serves_again() -> bool:
        call(stack, "is it back?")
        return calls_to(stack, OPENAI_ACCOUNT)[0] > answered + 1

    wait_until(serves_again, 60, what="calls of the first route")
    wait_until(lambda: failed_probes(stack) is None, 10, what="the end of the outage")
    figures = {
        "p50_before_ms": p50_ms(before_s),
        "p50_after_ms": p50_ms(after_s),
        "longest_meanwhile_ms": round(max(during_s) * 1000, 1),
        "longest_after_ms": round(max(after_s) * 1000, 1),
    }
    for name, value in figures.items():
        record_property(name, value)
