"""The fake upstream's rate limit: a sliding window of requests and tokens, in OpenAI's words and headers."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import msgspec


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Quotas of a sliding window; `window_s` shortens the minute for tests, in proportion."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    window_s: float = 60.0
    states_limits: bool = True  # in headers, as OpenAI does
    states_wait: bool = True  # of a refusal, in headers and in words


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call over its quota. `kind` is OpenAI's error type."""

    kind: Literal["requests", "tokens"]
    limit: int
    used: int
    wait_s: float


class SlidingWindow:
    """Requests and tokens of the last `window_s` seconds. The clock is the caller's."""

    def __init__(self, rate: RateLimit) -> None:
        self.rate = rate
        share = rate.window_s / 60
        self.max_requests = None if rate.requests_per_minute is None else max(1, int(rate.requests_per_minute * share))
        self.max_tokens = None if rate.tokens_per_minute is None else max(1, int(rate.tokens_per_minute * share))
        self.tokens = 0
        self._calls: deque[tuple[float, int]] = deque()

    @property
    def requests(self) -> int:
        """Calls of the window."""
        return len(self._calls)

    def take(self, tokens: int, now: float) -> Refusal | None:
        """Count the call, or say why it is refused; a refused call is not counted."""
        while self._calls and self._calls[0][0] <= now - self.rate.window_s:
            self.tokens -= self._calls.popleft()[1]
        if self.max_requests is not None and self.requests >= self.max_requests:
            return Refusal("requests", self.max_requests, self.requests, self._calls[0][0] + self.rate.window_s - now)
        if self.max_tokens is not None and self.tokens + tokens > self.max_tokens:
            return Refusal("tokens", self.max_tokens, self.tokens, self._until_room_for(tokens, now))
        self._calls.append((now, tokens))
        self.tokens += tokens
        return None

    def _until_room_for(self, tokens: int, now: float) -> float:
        left = self.tokens
        for at, spent in self._calls:
            left -= spent
            if left + tokens <= (self.max_tokens or 0):
                return at + self.rate.window_s - now
        return self.rate.window_s

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's x-ratelimit-* headers, as of the last call taken."""
        if not self.rate.states_limits:
            return {}
        oldest = self._calls[0][0] if self._calls else now
        reset = go_duration(max(0.0, oldest + self.rate.window_s - now))
        headers = {}
        if self.max_requests is not None:
            headers["x-ratelimit-limit-requests"] = str(self.max_requests)
            headers["x-ratelimit-remaining-requests"] = str(self.max_requests - self.requests)
            headers["x-ratelimit-reset-requests"] = reset
        if self.max_tokens is not None:
            headers["x-ratelimit-limit-tokens"] = str(self.max_tokens)
            headers["x-ratelimit-remaining-tokens"] = str(self.max_tokens - self.tokens)
            headers["x-ratelimit-reset-tokens"] = reset
        return headers


def refusal_message(refusal: Refusal, model: str, tokens: int, *, states_wait: bool = True) -> str:
    """OpenAI's words for a call over its quota."""
    unit, requested = ("requests per min (RPM)", 1) if refusal.kind == "requests" else ("tokens per min (TPM)", tokens)
    return (
        f"Rate limit reached for {model} in organization org-fake on {unit}: "
        f"Limit {refusal.limit}, Used {refusal.used}, Requested {requested}. "
        + (f"Please try again in {go_duration(refusal.wait_s)}. " if states_wait else "")
        + "Visit https://platform.openai.com/account/rate-limits to learn more."
    )


def retry_headers(wait_s: float) -> dict[str, str]:
    """Both forms that OpenAI sends: whole seconds, rounded up, and milliseconds."""
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def go_duration(seconds: float) -> str:
    """Seconds as Go prints them: 20ms, 2.812s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(seconds, 60)
    tail = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(minutes)}m{tail}" if minutes else tail
