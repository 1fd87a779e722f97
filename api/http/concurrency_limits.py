"""Limits of concurrent calls, long polls and result streams in one API process.

Each budget has a limit for one key (429 above it, while other keys are served) and one for the process (503).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.config.settings import Settings
from engine.observability.telemetry import BUDGET_REFUSALS
from models.errors import Overloaded, RateLimited

log = logging.getLogger("embedmill.budgets")
RETRY_S = 1.0
LOG_EVERY_S = 10.0


class Budget:
    """A limit of concurrent uses, in total and for each key."""

    def __init__(self, name: str, *, limit: int, limit_per_key: int) -> None:
        self.name = name
        self._limit = limit
        self._limit_per_key = limit_per_key
        self._used = 0
        self._used_by_key: dict[str, int] = {}
        self._logged_at: dict[str, float] = {}
        self._refused: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._used

    def acquire(self, key_id: str) -> None:
        """Take one use. Raises RateLimited at the key's limit, Overloaded at the process's."""
        key_count = self._used_by_key.get(key_id, 0)
        if key_count >= self._limit_per_key:
            self._refuse("key", key_id)
            raise RateLimited(
                f"Your key has {key_count} {self.name} under way, which is the most that it may have here. "
                "Try again when one of them has ended.",
                retry_after_s=RETRY_S,
            )
        if self._used >= self._limit:
            self._refuse("process", key_id)
            raise Overloaded(
                f"The server has as many {self.name} under way as it can serve. Try again soon.", retry_after_s=RETRY_S
            )
        self._used += 1
        self._used_by_key[key_id] = key_count + 1

    def release(self, key_id: str) -> None:
        """Give back one that `acquire` took."""
        self._used -= 1
        key_count = self._used_by_key[key_id] - 1
        if key_count:
            self._used_by_key[key_id] = key_count
        else:
            del self._used_by_key[key_id]

    @contextmanager
    def hold(self, key_id: str) -> Iterator[None]:
        """Acquire one for the block. Raises as `acquire` does."""
        self.acquire(key_id)
        try:
            yield
        finally:
            self.release(key_id)

    def _refuse(self, scope: str, key_id: str) -> None:
        """Count the refusal, and log at most one line per LOG_EVERY_S: refused callers retry at once."""
        BUDGET_REFUSALS.labels(self.name, scope).inc()
        name = key_id if scope == "key" else scope
        self._refused[name] += 1
        now = time.monotonic()
        if now - self._logged_at.get(name, -LOG_EVERY_S) < LOG_EVERY_S:
            return
        recent = {each: at for each, at in self._logged_at.items() if now - at < LOG_EVERY_S}
        self._logged_at = recent | {name: now}
        log.warning(
            "refused %d requests: the budget of %s of %s is used up",
            self._refused.pop(name),
            self.name,
            "this process" if scope == "process" else "a key",
            extra={"key_id": key_id},
        )


class Budgets:
    """The budgets of one process."""

    def __init__(self, settings: Settings) -> None:
        self.calls = Budget("calls", limit=settings.max_calls, limit_per_key=settings.max_calls_per_key)
        self.polls = Budget("long polls", limit=settings.max_polls, limit_per_key=settings.max_polls_per_key)
        self.streams = Budget("streams", limit=settings.max_streams, limit_per_key=settings.max_streams_per_key)


class BudgetedStream(StreamingResponse):
    """A streaming response that releases its place in the budget once it is sent or its reader has gone."""

    def __init__(self, budget: Budget, key_id: str, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._budget = budget
        self._key_id = key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._budget.release(self._key_id)
