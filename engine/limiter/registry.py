"""All rate limiters of this process, and what other processes share: accounts without a quota that had 429s lately."""

from __future__ import annotations

import asyncio
import time

from engine.limiter import lua
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.limiter.route_limiter import PACE_AFTER_429_S, RouteLimiter
from engine.planning.token_estimator import TokenEstimator
from models.embedding import Account

REFRESH_EVERY_S = 1.0
SLOT_MARGIN_S = 30.0  # a call's slot counts as lost so long after the account's timeout


class LimiterRegistry:
    """Creates the limiters, one for each account and upstream model, and closes them."""

    def __init__(self, redis_url: str = "", prefix: str = "") -> None:
        self._store = RedisStore(redis_url, prefix)
        # True where all processes share their quotas through Redis: `refresh_if_due` before each call.
        self.uses_redis = self._store.is_configured
        self._limiters: list[RouteLimiter] = []
        self._refresh_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._processes = 1

    def split_among(self, processes: int) -> None:
        """Without Redis: use 1/n of each quota, where n is the number of processes."""
        self._processes = processes
        for limiter in self._limiters:
            limiter.coordinator.split_among(processes)

    def create(self, account: Account, model: str, estimator: TokenEstimator) -> RouteLimiter:
        """The limiter of the account and upstream model. To be called once for each."""
        coordinator = BucketCoordinator(
            self._store,
            f"{account.name}|{model}",
            max_concurrency=account.max_concurrency,
            slot_ttl_s=account.timeout_s + SLOT_MARGIN_S,
            concurrency_is_global=account.concurrency_is_global,
        )
        coordinator.split_among(self._processes)
        limiter = RouteLimiter(
            account,
            model,
            coordinator,
            estimator,
            slot_prefix=self._store.process,
            announce=self.refresh_recent_429s,
        )
        self._limiters.append(limiter)
        return limiter

    def refresh_if_due(self) -> None:
        """Read, in a task and once a second, which accounts had 429s lately."""
        if time.monotonic() >= self._refresh_at:
            self.refresh_recent_429s()

    def refresh_recent_429s(self, announced: str = "") -> None:
        """Read, in a task, which accounts had 429s lately; announce one to the other processes."""
        self._refresh_at = time.monotonic() + REFRESH_EVERY_S
        self._refreshing = asyncio.create_task(self._refresh(announced))

    async def close(self) -> None:
        """Wait until all calls are settled, and close the connection to Redis."""
        self.uses_redis = False
        if self._refreshing is not None:
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for limiter in self._limiters:
            await limiter.close()
            await limiter.coordinator.close()
        await self._store.close()

    async def _refresh(self, announced: str) -> None:
        names = await self._store.eval(lua.RECENT_429S, [lua.RECENT_429S_KEY], [announced, PACE_AFTER_429_S])
        for name in names or ():
            for limiter in self._limiters:
                if limiter.name == name:
                    limiter.pace_for(2 * REFRESH_EVERY_S)
