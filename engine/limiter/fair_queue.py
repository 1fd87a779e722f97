"""Who waits for a place or a turn: tenant by tenant, so that a caller with hundreds of calls delays another by one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class FairQueue:
    """Waiters of tenants in turn; those of one tenant in the order in which they came."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[asyncio.Future[bool]]] = OrderedDict()

    def __bool__(self) -> bool:
        """True when somebody waits. Those who were cancelled, and have not run since to take themselves out, do not."""
        while self._waiting:
            tenant, waiters = next(iter(self._waiting.items()))
            while waiters and waiters[0].done():
                waiters.popleft()
            if waiters:
                return True
            del self._waiting[tenant]
        return False

    def add(self, tenant: str) -> asyncio.Future[bool]:
        """A new waiter; whoever pops it gives it its result."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(waiter)
        return waiter

    def remove(self, tenant: str, waiter: asyncio.Future[bool]) -> None:
        """A waiter that has not been popped gives up."""
        waiter.cancel()
        waiters = self._waiting.get(tenant)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[tenant]

    def pop(self) -> asyncio.Future[bool]:
        """The next one, of a queue in which somebody waits. Its tenant comes last from now on."""
        tenant, waiters = next(iter(self._waiting.items()))
        waiter = waiters.popleft()
        if waiters:
            self._waiting.move_to_end(tenant)
        else:
            del self._waiting[tenant]
        return waiter


class FairLock:
    """A lock that tenants are given in turn."""

    __slots__ = ("_is_locked", "_queue")

    def __init__(self) -> None:
        self._queue = FairQueue()
        self._is_locked = False

    async def acquire(self, tenant: str) -> None:
        if not self._is_locked:
            self._is_locked = True
            return
        waiter = self._queue.add(tenant)
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.release()  # it was given the lock in this very moment
            else:
                self._queue.remove(tenant, waiter)
            raise

    def release(self) -> None:
        if self._queue:
            self._queue.pop().set_result(True)
        else:
            self._is_locked = False
