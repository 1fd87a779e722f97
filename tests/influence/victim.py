"""The other caller: a steady stream of sync calls and a job now and then, each answer checked, each call timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import numpy as np

from providers.fake import fake_tokens, fake_vectors
from tests.system.stack import MODEL, UPSTREAM_MODEL, WIDTH, Stack
from tests.waiting import wait_until

CALL_TIMEOUT_S = 60.0  # a call that takes as long hangs
LEDGER_WITHIN_S = 20.0


@dataclass
class Calls:
    """What the calls of one stream came to."""

    user: str  # names the stream in the ledger
    texts: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    upstream_seconds: list[float] = field(default_factory=list)  # of them, what the upstream took
    wrong: list[str] = field(default_factory=list)  # answers that are not what they must be

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent)) * 1000

    def own_percentile_ms(self, percent: float) -> float:
        """Of the time without the upstream's."""
        return float(np.percentile(np.subtract(self.seconds, self.upstream_seconds), percent)) * 1000


class Victim:
    """Makes calls in threads of its own, one after another in each."""

    def __init__(self, stack: Stack, *, callers: int, pause_s: float) -> None:
        self._stack = stack
        self._callers = callers
        self._pause_s = pause_s

    def stream(self, user: str, until: Callable[[], bool]) -> Calls:
        """Calls until the condition holds, looked at after each call; at least one by each caller."""
        calls = Calls(user)
        lock = threading.Lock()

        def call_on(caller: int) -> None:
            with httpx.Client(
                base_url=self._stack.url, headers=self._stack.headers, timeout=CALL_TIMEOUT_S, trust_env=False
            ) as client:
                for number in range(1_000_000):
                    text = f"{user} {caller} {number}"
                    started = time.perf_counter()
                    wrong, upstream_s = _call(client, text, user)
                    seconds = time.perf_counter() - started
                    with lock:
                        calls.texts.append(text)
                        calls.seconds.append(seconds)
                        calls.upstream_seconds.append(upstream_s)
                        calls.wrong += wrong
                    if until():
                        return
                    time.sleep(self._pause_s)

        with ThreadPoolExecutor(self._callers) as threads:
            for done in [threads.submit(call_on, caller) for caller in range(self._callers)]:
                done.result()
        return calls

    def check_ledger(self, calls: Calls) -> None:
        """Each call is in the ledger once, as delivered, with its tokens, and nothing else of this stream is."""
        expected = [("delivered", len(calls.texts), len(calls.texts), sum(map(fake_tokens, calls.texts)))]

        def found() -> list[tuple[object, ...]]:
            return self._stack.query(
                "SELECT kind, count(*), CAST(sum(inputs) AS INTEGER), CAST(sum(prompt_tokens) AS INTEGER) "
                f"FROM usage WHERE end_user = '{calls.user}' GROUP BY kind"
            )

        wait_until(lambda: found() == expected, LEDGER_WITHIN_S, what=f"the ledger of {expected}, which is {found()}")


def _call(client: httpx.Client, text: str, user: str) -> tuple[list[str], float]:
    """What is wrong with the answer to one call, and how long the upstream took for it."""
    try:
        reply = client.post("/v1/embeddings", json={"model": MODEL, "input": text, "user": user})
    except httpx.HTTPError as error:
        return [f"{text}: {error!r}"], 0.0
    if reply.status_code != httpx.codes.OK:
        return [f"{text}: {reply.status_code} {reply.text[:300]}"], 0.0
    body = reply.json()
    vector = np.asarray(body["data"][0]["embedding"], dtype=np.float32)
    expected = fake_vectors([text], WIDTH, UPSTREAM_MODEL)[0]
    attempts = body["providerMetadata"]["gateway"]["routing"]["attempts"]
    good = (
        len(body["data"]) == 1
        and np.array_equal(vector, expected)
        and body["model"] == MODEL
        and body["usage"]["prompt_tokens"] == fake_tokens(text)
        and [attempt["success"] for attempt in attempts] == [True]
    )
    upstream_s = sum(attempt["endTime"] - attempt["startTime"] for attempt in attempts)
    return ([] if good else [f"{text}: {reply.text[:300]}"]), upstream_s
