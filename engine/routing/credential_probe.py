"""First calls: until a route has answered, one call of this process shows whether our credential is taken there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.cancellation import CancellationToken
from models.embedding import Route
from models.errors import UpstreamAuthFailed, UpstreamError

# A refusal comes at once: who has waited so long for the first call's end need not wait for the rest of it.
PATIENCE_S = 2.0


class CredentialProbe:
    """Which routes are open to all calls. A refused credential shuts one, any other answer opens it."""

    def __init__(self) -> None:
        self._open: set[tuple[str, str]] = set()
        self._under_way: dict[tuple[str, str], asyncio.Future[UpstreamError | None]] = {}

    def is_open(self, route: Route) -> bool:
        return (route.account.name, route.upstream_model) in self._open

    def open(self, route: Route) -> None:
        """The route has answered a control call: all others may follow."""
        self._open.add((route.account.name, route.upstream_model))

    def shut(self, route: Route) -> None:
        """The credential was refused: the next call there is a first one again."""
        self._open.discard((route.account.name, route.upstream_model))

    @asynccontextmanager
    async def turn(self, route: Route, deadline: float, stop: CancellationToken) -> AsyncIterator[None]:
        """Make a call within it: alone if it is a first one, else after the first one's end or a little while.

        Raises what the first call met where that was a refusal of the credential. `deadline` is on time.monotonic().
        """
        place = (route.account.name, route.upstream_model)
        while place not in self._open and (first := self._under_way.get(place)) is not None:
            try:
                async with stop.timeout(min(PATIENCE_S, (deadline - time.monotonic()) / 2)):
                    refused = await asyncio.shield(first)
            except TimeoutError:
                stop.raise_if_cancelled()
                break  # a slow provider, and no refusal: it keeps nobody out
            if refused is not None:
                raise type(refused)(
                    refused.message,
                    status=refused.status,
                    sent=False,
                    code=refused.code,
                    route_fault=refused.route_fault,
                    advice=refused.advice,
                )
        if place in self._open or place in self._under_way:
            yield
            return
        mine = self._under_way[place] = asyncio.get_running_loop().create_future()
        refusal: UpstreamError | None = None
        try:
            yield
            self._open.add(place)
        except UpstreamAuthFailed as error:
            refusal = error
            raise
        except UpstreamError as error:
            if error.route_fault:  # the next would meet it too
                refusal = error
            elif error.status is not None:
                self._open.add(place)
            raise
        finally:
            del self._under_way[place]
            mine.set_result(refusal)
