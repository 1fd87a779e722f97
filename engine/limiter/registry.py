"""All lines of this process, and the news from the others: which accounts without a quota were refused lately."""

from __future__ import annotations

import asyncio
import time

from engine.limiter import lua
from engine.limiter.coordinator import BucketCoordinator
from engine.limiter.redis_store import RedisStore
from engine.limiter.route_limiter import WATCH_S, Permit, RouteLimiter
from models.embedding import Account, Route

NEWS_EVERY_S = 1.0
SLOT_MARGIN_S = 30.0  # a call's place is given up for lost so long after its time limit


class Lines:
    """One line for each account and upstream model, made when it is first called."""

    def __init__(self, redis_url: str = "", prefix: str = "") -> None:
        self._shared = RedisStore(redis_url, prefix)
        self._lines: dict[tuple[str, str], RouteLimiter] = {}
        self._desks: list[BucketCoordinator] = []
        self._news_at = 0.0
        self._getting: asyncio.Task[None] | None = None
        self._processes = 1

    @property
    def shared(self) -> bool:
        """True when there is a Redis, whose book all processes keep."""
        return self._shared.configured

    def share_among(self, processes: int) -> None:
        """Without Redis: so many processes keep to the quotas, each to its part."""
        self._processes = processes
        for desk in self._desks:
            desk.share_among(processes)

    def of(self, route: Route) -> RouteLimiter:
        account = route.account
        key = (account.name, route.upstream_model)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = self._made(account, route.upstream_model)
        if self._shared.configured and time.monotonic() >= self._news_at:
            self.get_news()
        return line

    def learned_tokens_per_call(self, route: Route) -> int | None:
        """What one call of bulk may hold under the quota that the route's replies told; None: they told none."""
        line = self._lines.get((route.account.name, route.upstream_model))
        return None if line is None else line.learned_tokens_per_call

    def get_news(self, about: str = "") -> None:
        """Ask, beside the calls, which accounts are watched; tell the others about one."""
        self._news_at = time.monotonic() + NEWS_EVERY_S
        self._getting = asyncio.create_task(self._get_news(about))

    async def close(self) -> None:
        if self._getting is not None:
            await asyncio.gather(self._getting, return_exceptions=True)
        for line in self._lines.values():
            await line.close()
        for desk in self._desks:
            await desk.close()
        await self._shared.close()

    async def _get_news(self, about: str) -> None:
        names = await self._shared.run(lua.WATCH, [lua.WATCHED], [about, WATCH_S])
        for name in names or ():
            for line in self._lines.values():
                if line.name == name:
                    line.watch(2 * NEWS_EVERY_S)

    def _made(self, account: Account, model: str) -> RouteLimiter:
        desk = BucketCoordinator(
            self._shared,
            f"{account.name}|{model}",
            most_under_way=account.max_concurrency,
            slot_s=account.timeout_s + SLOT_MARGIN_S,
            concurrency_is_global=account.concurrency_is_global,
        )
        desk.share_among(self._processes)
        self._desks.append(desk)
        return RouteLimiter(account, model, desk, slot_prefix=self._shared.process, tell=self.get_news)


__all__ = ["Lines", "Permit", "RouteLimiter"]
