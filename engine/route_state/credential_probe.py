"""Credential probe: until a route has answered, one call of this process shows whether our credential is accepted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.cancellation import CancellationToken
from models.errors import UpstreamAuthFailed, UpstreamError

# A refused credential is reported at once: other calls wait no longer for the end of the first one.
PROBE_WAIT_S = 2.0


class CredentialProbe:
    """Whether the credential of one route is verified. A refusal ends that, any other answer verifies it.

    While `is_verified`, calls need no probe. Set it to False once the credential was refused.
    """

    __slots__ = ("_probe", "is_verified")

    def __init__(self) -> None:
        self.is_verified = False
        self._probe: asyncio.Future[UpstreamError | None] | None = None

    @asynccontextmanager
    async def guard(self, deadline: float, stop: CancellationToken) -> AsyncIterator[None]:
        """Around a call: alone if it is the probe, else after the probe's end or a short wait.

        Raises the probe's error where that was a refused credential or a fault of the route. `deadline` is on
        time.monotonic().
        """
        while not self.is_verified and (running := self._probe) is not None:
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
        if self.is_verified or self._probe is not None:
            yield
            return
        probe = self._probe = asyncio.get_running_loop().create_future()
        refusal: UpstreamError | None = None
        try:
            yield
            self.is_verified = True
        except UpstreamAuthFailed as error:
            refusal = error
            raise
        except UpstreamError as error:
            if error.route_fault:  # the next call would meet it too
                refusal = error
            elif error.status is not None:
                self.is_verified = True
            raise
        finally:
            self._probe = None
            probe.set_result(refusal)
