"""All rate limiters of this process, and what other processes share: accounts without a quota that had 429s lately."""

from __future__ import annotations

import asyncio
import time

from engine.limiter import lua
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.limiter.route_limiter import PACE_AFTER_429_S, Permit, RouteLimiter
from models.embedding import Account, Route

REFRESH_EVERY_S = 1.0
SLOT_MARGIN_S = 30.0  # a call's slot counts as lost so long after the account's timeout


class LimiterRegistry:
    """One RouteLimiter for each account and upstream model, created at its first call."""

    def __init__(self, redis_url: str = "", prefix: str = "") -> None:
        self._store = RedisStore(redis_url, prefix)
        self._limiters: dict[tuple[str, str], RouteLimiter] = {}
        self._coordinators: list[BucketCoordinator] = []
        self._refresh_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self._processes = 1

    @property
    def uses_redis(self) -> bool:
        """True when all processes share their quotas through Redis."""
        return self._store.is_configured

    def split_among(self, processes: int) -> None:
        """Without Redis: use 1/n of each quota, where n is the number of processes."""
        self._processes = processes
        for coordinator in self._coordinators:
            coordinator.split_among(processes)

    def for_route(self, route: Route) -> RouteLimiter:
        """The limiter of the route's account and upstream model."""
        account = route.account
        key = (account.name, route.upstream_model)
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = self._create(account, route.upstream_model)
        if self._store.is_configured and time.monotonic() >= self._refresh_at:
            self.refresh_recent_429s()
        return limiter

    def max_learned_call_tokens(self, route: Route) -> int | None:
        """Largest bulk call under the quota that the route's replies stated; None: they stated none."""
        limiter = self._limiters.get((route.account.name, route.upstream_model))
        return None if limiter is None else limiter.max_learned_call_tokens

    def refresh_recent_429s(self, announced: str = "") -> None:
        """Read, in a task, which accounts had 429s lately; announce one to the other processes."""
        self._refresh_at = time.monotonic() + REFRESH_EVERY_S
        self._refreshing = asyncio.create_task(self._refresh(announced))

    async def close(self) -> None:
        """Wait until all calls are settled, and close the connection to Redis."""
        if self._refreshing is not None:
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for limiter in self._limiters.values():
            await limiter.close()
        for coordinator in self._coordinators:
            await coordinator.close()
        await self._store.close()

    async def _refresh(self, announced: str) -> None:
        names = await self._store.eval(lua.RECENT_429S, [lua.RECENT_429S_KEY], [announced, PACE_AFTER_429_S])
        for name in names or ():
            for limiter in self._limiters.values():
                if limiter.name == name:
                    limiter.pace_for(2 * REFRESH_EVERY_S)

    def _create(self, account: Account, model: str) -> RouteLimiter:
        coordinator = BucketCoordinator(
            self._store,
            f"{account.name}|{model}",
            max_concurrency=account.max_concurrency,
            slot_ttl_s=account.timeout_s + SLOT_MARGIN_S,
            concurrency_is_global=account.concurrency_is_global,
        )
        coordinator.split_among(self._processes)
        self._coordinators.append(coordinator)
        return RouteLimiter(
            account, model, coordinator, slot_prefix=self._store.process, announce=self.refresh_recent_429s
        )


__all__ = ["LimiterRegistry", "Permit", "RouteLimiter"]
