"""Fair queuing among tenants: waiters are served round robin, so one tenant's many calls delay another by one call."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable


class FairQueue:
    """Waiters, round robin by tenant; one tenant's first in, first out. While `by_tenant` is empty, nobody waits."""

    __slots__ = ("by_tenant",)

    def __init__(self) -> None:
        self.by_tenant: OrderedDict[str, deque[asyncio.Future[bool]]] = OrderedDict()

    def __bool__(self) -> bool:
        """True when somebody waits. Drops waiters that were cancelled and have not removed themselves yet."""
        while self.by_tenant:
            tenant, waiters = next(iter(self.by_tenant.items()))
            while waiters and waiters[0].done():
                waiters.popleft()
            if waiters:
                return True
            del self.by_tenant[tenant]
        return False

    def add(self, tenant: str) -> asyncio.Future[bool]:
        """Add a waiter. Whoever pops it must set its result."""
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.by_tenant.setdefault(tenant, deque()).append(waiter)
        return waiter

    async def wait(self, tenant: str, pass_on: Callable[[], None]) -> bool:
        """Wait until popped. Returns the waiter's result.

        `pass_on` is called when the waiter was popped with True in the moment of its cancellation: another one is next.
        """
        waiter = self.add(tenant)
        with contextlib.ExitStack() as undo:
            undo.callback(self._withdraw, tenant, waiter, pass_on)
            result = await waiter
            undo.pop_all()
        return result

    def _withdraw(self, tenant: str, waiter: asyncio.Future[bool], pass_on: Callable[[], None]) -> None:
        if not waiter.done() or waiter.cancelled():
            self.remove(tenant, waiter)
        elif waiter.result():
            pass_on()

    def remove(self, tenant: str, waiter: asyncio.Future[bool]) -> None:
        """Cancel a waiter that has not been popped, and take it out."""
        waiter.cancel()
        waiters = self.by_tenant.get(tenant)
        if waiters and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self.by_tenant[tenant]

    def pop(self) -> asyncio.Future[bool]:
        """The next waiter of a queue that is not empty. Its tenant moves to the end of the round."""
        tenant, waiters = next(iter(self.by_tenant.items()))
        waiter = waiters.popleft()
        if waiters:
            self.by_tenant.move_to_end(tenant)
        else:
            del self.by_tenant[tenant]
        return waiter


class FairLock:
    """A lock that serves waiting tenants round robin."""

    __slots__ = ("_is_locked", "_queue")

    def __init__(self) -> None:
        self._queue = FairQueue()
        self._is_locked = False

    async def acquire(self, tenant: str) -> None:
        """Wait for the lock."""
        if self._is_locked:
            await self._queue.wait(tenant, self.release)
        else:
            self._is_locked = True

    def release(self) -> None:
        """Hand the lock to the next waiter, or unlock it."""
        if self._queue:
            self._queue.pop().set_result(True)
        else:
            self._is_locked = False
