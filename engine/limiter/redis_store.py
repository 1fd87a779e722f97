"""The connection to the shared rate-limit state in Redis or Valkey: a quick reply, or None.

A Redis that is down, frozen or full stops no call: the caller goes on with its local state, and one call a second tries
Redis again.
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
from engine.connections.connection_faults import REDIS
from engine.observability.telemetry import REDIS_FAILURES
from engine.process.process_names import process_name

log = logging.getLogger("embedmill.limiter")

REPLY_TIMEOUT_S = 0.25
RETRY_AFTER_S = 1.0
# One late reply may be this process's own fault, a busy event loop: two in a row mean that Redis is down.
LATE_REPLIES_UNTIL_DOWN = 2
EXTRA_LOOP_STEPS = 5


class RedisStore:
    """One process's connection to the shared state."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self._url = url
        self._prefix = prefix  # of all keys: two deployments on one Redis have different ones
        self._redis: Any = None  # opened on the event loop of the first call
        self._digests: dict[str, str] = {}
        self._late_replies = 0
        self._is_down = False
        self._retry_at = 0.0
        self.process = f"{process_name()}#{secrets.token_hex(4)}"
        # Counts reconnections: a coordinator compares it to learn that Redis missed some of its updates.
        self.reconnects = 0

    @property
    def is_configured(self) -> bool:
        """True when there is a URL of a Redis."""
        return bool(self._url)

    async def eval(self, script: str, keys: Sequence[str], arguments: Sequence[str | float | int]) -> list[Any] | None:
        """Run a script. Returns None when Redis does not reply within a quarter of a second."""
        if not self._url:
            return None
        now = asyncio.get_running_loop().time()
        if self._is_down:
            if now < self._retry_at:
                return None
            self._retry_at = now + RETRY_AFTER_S  # one call tries; the others need not wait for it
        try:
            reply: list[Any] = await _in_time(self._evaluate(script, [self._prefix + key for key in keys], arguments))
        except TimeoutError:
            self._late_replies += 1
            if self._late_replies >= LATE_REPLIES_UNTIL_DOWN:
                self._mark_down("it does not answer in time")
            return None
        except (RedisError, OSError) as error:
            fault = broker_fault(error, REDIS)
            self._mark_down(f"{fault.cause}; {fault.advice}" if fault.advice else fault.cause)
            return None
        self._late_replies = 0
        if self._is_down:
            self._is_down = False
            self.reconnects += 1
            log.warning("Redis is back: quotas are shared by all processes again")
        return reply

    async def close(self) -> None:
        """Close the connection; later calls of `eval` return None."""
        client, self._redis, self._url = self._redis, None, ""
        if client is not None:
            await client.aclose()

    async def _evaluate(self, script: str, keys: Sequence[str], arguments: Sequence[str | float | int]) -> Any:
        if self._redis is None:
            self._redis = Redis(
                **urls.redis_or_broker(self._url, "EMBEDMILL_REDIS_URL").redis_options(),
                socket_timeout=None,  # `_in_time` bounds all of it
                retry=Retry(NoBackoff(), 0),  # the default tries for seconds
                decode_responses=True,
            )
        digest = self._digests.get(script)
        if digest is None:
            digest = self._digests[script] = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return await self._redis.evalsha(digest, len(keys), *keys, *arguments)
        except NoScriptError:  # a Redis that has not seen the script, or was restarted
            return await self._redis.eval(script, len(keys), *keys, *arguments)

    def _mark_down(self, reason: str) -> None:
        REDIS_FAILURES.inc()
        self._retry_at = asyncio.get_running_loop().time() + RETRY_AFTER_S
        if not self._is_down:
            self._is_down = True
            log.warning("Redis is away (%s): each process keeps to its share of the quotas", reason)


async def _in_time(call: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """Return the reply. Raises TimeoutError after a quarter of a second.

    Where this process was busy or had no processor meanwhile, an unread reply may be there already: then it counts.
    """
    task = asyncio.create_task(call)
    try:
        if not (await asyncio.wait({task}, timeout=REPLY_TIMEOUT_S))[0]:
            for _ in range(EXTRA_LOOP_STEPS):
                await asyncio.sleep(0)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()  # drops the connection too
