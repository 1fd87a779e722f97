"""Credential probe: until a route has answered, one call of this process shows whether our credential is accepted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.cancellation import CancellationToken
from models.embedding import Route
from models.errors import UpstreamAuthFailed, UpstreamError

# A refused credential is reported at once: other calls wait no longer for the end of the first one.
PROBE_WAIT_S = 2.0


class CredentialProbe:
    """The routes whose credential is verified. A refused credential ends that, any other answer verifies it."""

    def __init__(self) -> None:
        self._verified: set[tuple[str, str]] = set()
        self._probes: dict[tuple[str, str], asyncio.Future[UpstreamError | None]] = {}

    def is_verified(self, route: Route) -> bool:
        """True when calls to the route need no probe."""
        return (route.account.name, route.upstream_model) in self._verified

    def mark_verified(self, route: Route) -> None:
        """The route has answered a control call."""
        self._verified.add((route.account.name, route.upstream_model))

    def invalidate(self, route: Route) -> None:
        """The credential was refused: the next call to the route is a probe again."""
        self._verified.discard((route.account.name, route.upstream_model))

    @asynccontextmanager
    async def guard(self, route: Route, deadline: float, stop: CancellationToken) -> AsyncIterator[None]:
        """Around a call: alone if it is the probe, else after the probe's end or a short wait.

        Raises the probe's error where that was a refused credential or a fault of the route. `deadline` is on
        time.monotonic().
        """
        key = (route.account.name, route.upstream_model)
        while key not in self._verified and (running := self._probes.get(key)) is not None:
            try:
                async with stop.timeout(min(PROBE_WAIT_S, (deadline - time.monotonic()) / 2)):
                    refused = await asyncio.shield(running)
            except TimeoutError:
                stop.raise_if_cancelled()
                break  # a slow provider, and no refusal: the call may be made
            if refused is not None:
                raise type(refused)(
                    refused.message,
                    status=refused.status,
                    sent=False,
                    code=refused.code,
                    route_fault=refused.route_fault,
                    advice=refused.advice,
                )
        if key in self._verified or key in self._probes:
            yield
            return
        probe = self._probes[key] = asyncio.get_running_loop().create_future()
        refusal: UpstreamError | None = None
        try:
            yield
            self._verified.add(key)
        except UpstreamAuthFailed as error:
            refusal = error
            raise
        except UpstreamError as error:
            if error.route_fault:  # the next call would meet it too
                refusal = error
            elif error.status is not None:
                self._verified.add(key)
            raise
        finally:
            del self._probes[key]
            probe.set_result(refusal)
