"""The way to the book that all processes share: Redis or Valkey, asked quickly or not at all.

A store that is away, frozen or full stops nothing: the caller goes on with its own book, and one call a second tries
again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from engine.connections import urls
from engine.connections.broker_faults import broker_fault
from engine.connections.faults import REDIS
from engine.observability.telemetry import LIMITER_FALLBACKS
from engine.process.process_names import process_name

log = logging.getLogger("embedmill.pacing")

ANSWER_S = 0.25
TRY_AGAIN_S = 1.0
# One late answer may be this process's own fault, a loop that was busy: two in a row say that Redis is away.
LATE_ANSWERS = 2
READING_STEPS = 5


class RedisStore:
    """One process's connection to the shared books."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self._url = url
        self._prefix = prefix  # of all keys: two installations on one Redis have different ones
        self._redis: Any = None  # opened on the loop of the first call
        self._digests: dict[str, str] = {}
        self._late = 0
        self._away = False
        self._try_again_at = 0.0
        self.process = f"{process_name()}#{secrets.token_hex(4)}"
        # Grows with each return from an absence: books compare it to learn that Redis missed what they did meanwhile.
        self.returns = 0

    @property
    def configured(self) -> bool:
        return bool(self._url)

    async def run(self, text: str, keys: Sequence[str], arguments: Sequence[str | float | int]) -> list[Any] | None:
        """Run a script; None when Redis does not answer within a quarter of a second."""
        if not self._url:
            return None
        now = asyncio.get_running_loop().time()
        if self._away:
            if now < self._try_again_at:
                return None
            self._try_again_at = now + TRY_AGAIN_S  # one call tries; the others need not wait for it
        try:
            answer: list[Any] = await _in_time(self._evaluate(text, [self._prefix + key for key in keys], arguments))
        except TimeoutError:
            self._late += 1
            if self._late >= LATE_ANSWERS:
                self._left("it does not answer in time")
            return None
        except (RedisError, OSError) as error:
            fault = broker_fault(error, REDIS)
            self._left(f"{fault.cause}; {fault.advice}" if fault.advice else fault.cause)
            return None
        self._late = 0
        if self._away:
            self._away = False
            self.returns += 1
            log.warning("Redis is back: quotas are shared by all processes again")
        return answer

    async def close(self) -> None:
        client, self._redis, self._url = self._redis, None, ""
        if client is not None:
            await client.aclose()

    async def _evaluate(self, text: str, keys: Sequence[str], arguments: Sequence[str | float | int]) -> Any:
        if self._redis is None:
            self._redis = Redis(
                **urls.redis_or_broker(self._url, "EMBEDMILL_REDIS_URL").redis_options(),
                socket_timeout=None,  # `_in_time` bounds all of it
                retry=Retry(NoBackoff(), 0),  # the default tries for seconds
                decode_responses=True,
            )
        digest = self._digests.get(text)
        if digest is None:
            digest = self._digests[text] = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._redis.evalsha(digest, len(keys), *keys, *arguments)
        except NoScriptError:  # a Redis that is new to it, or was restarted
            return await self._redis.eval(text, len(keys), *keys, *arguments)

    def _left(self, reason: str) -> None:
        LIMITER_FALLBACKS.inc()
        self._try_again_at = asyncio.get_running_loop().time() + TRY_AGAIN_S
        if not self._away:
            self._away = True
            log.warning("Redis is away (%s): each process keeps to its share of the quotas", reason)


async def _in_time(asked: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """The answer, or TimeoutError after a quarter of a second.

    Where this process was busy or had no processor meanwhile, the answer may be there already, unread: then it counts.
    """
    asking = asyncio.create_task(asked)
    try:
        if not (await asyncio.wait({asking}, timeout=ANSWER_S))[0]:
            for _ in range(READING_STEPS):
                await asyncio.sleep(0)
        if not asking.done():
            raise TimeoutError
        return asking.result()
    finally:
        if not asking.done():
            asking.cancel()  # drops the connection too
