"""Sync calls during chaos: each gets its text's own vector, or is told in the right words that it must come again."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import numpy as np

from providers.fake import fake_vectors
from tests.system.stack import MODEL, UPSTREAM_MODEL, WIDTH, Stack

EVERY_S = 0.05
TIMEOUT_S = 20.0
COME_AGAIN = (429, 503)
PROVIDER_FAILED = (502, 504)


@dataclass(slots=True)
class Window:
    """A time during which something was broken on purpose, on time.monotonic(); open until it is closed."""

    began: float
    ended: float = math.inf
    back_from: float = math.inf  # an answer to a call that began later closes it

    def meets(self, began: float, ended: float) -> bool:
        return self.began <= ended and began <= self.ended


class SyncCalls:
    """One caller, who asks any of the APIs. What it may be told depends on what is broken: `breaches` are the rest."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self._stack, self._seed = stack, seed
        self._chance = random.Random(seed)
        self._misbehaved: list[Window] = []
        self._away: dict[str, list[Window]] = {url: [] for url in stack.urls.values()}
        self.statuses: Counter[str] = Counter()
        self.breaches: list[str] = []

    @contextmanager
    def misbehaving(self) -> Iterator[None]:
        """A call that is under way at any moment of this may fail by the provider's fault."""
        window = Window(time.monotonic())
        self._misbehaved.append(window)
        yield
        window.ended = time.monotonic()

    @contextmanager
    def ending(self, name: str) -> Iterator[None]:
        """This API is ended and started again meanwhile: it is away until the new process has answered a call."""
        window = Window(time.monotonic())
        self._away[self._stack.urls[name]].append(window)
        yield
        window.back_from = time.monotonic()

    def go_on_until(self, stop: threading.Event) -> None:
        number = 0
        while not stop.wait(EVERY_S):
            number += 1
            self._call(f"sync {self._seed} {number}")

    def _call(self, text: str) -> None:
        url = self._chance.choice([*self._away])
        began = time.monotonic()
        try:
            answer = httpx.post(
                f"{url}/v1/embeddings",
                json={"model": MODEL, "input": text},
                headers=self._stack.headers,
                timeout=TIMEOUT_S,
            )
        except httpx.TransportError as error:
            self.judge_silence(url, began, type(error).__name__)
        else:
            self.judge(url, began, text, answer)

    def judge_silence(self, url: str, began: float, error: str) -> None:
        """No answer: only an API that was ended may do so."""
        self.statuses[error] += 1
        if not any(window.meets(began, time.monotonic()) for window in self._away[url]):
            self.breaches.append(f"a sync call came to {error}, and nobody had ended its API")

    def judge(self, url: str, began: float, text: str, answer: httpx.Response) -> None:
        ended, status = time.monotonic(), answer.status_code
        self.statuses[str(status)] += 1
        for window in self._away[url]:
            if began > window.back_from:
                window.ended = min(window.ended, began)
        if status == 200:
            if not _has_vector_of(text, answer):
                self.breaches.append(f"the sync call of {text!r} got another text's vector")
        elif status in COME_AGAIN:
            if "retry-after" not in answer.headers:
                self.breaches.append(f"a sync call was told {status}, and not when to come again")
        elif status not in PROVIDER_FAILED or not any(each.meets(began, ended) for each in self._misbehaved):
            self.breaches.append(f"a sync call was told {status}: {answer.text[:200]}")


def _has_vector_of(text: str, answer: httpx.Response) -> bool:
    try:
        got = np.array(answer.json()["data"][0]["embedding"], dtype="<f4")
    except (ValueError, LookupError, TypeError):
        return False
    return np.array_equal(got, fake_vectors([text], WIDTH, UPSTREAM_MODEL)[0])
