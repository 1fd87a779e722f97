"""Health probes that run beside the calls of callers: while another route serves them, nobody waits for a dead one.

A probe that finds no connection lasts as long as connecting may. It carries a text of ours, and the operator pays for
it. Where no other route is left, and in jobs, a batch that waits anyway makes the probe itself
(`engine/embedding/diagnosis.py`).
"""

from __future__ import annotations

import asyncio
import time

from engine.ledger import usage_rows
from engine.ledger.usage_buffer import UsageBuffer
from engine.process.background import logging_errors
from engine.route_state.control_call import control_batch
from engine.routing.router import Router
from engine.upstream.call import CallContext, Upstream
from models.embedding import Call, Route, RouteKey
from models.errors import Disposition, EmbedmillError, UpstreamError, UpstreamRateLimited
from models.usage import OPERATOR_PROJECT

TIMEOUT_S = 5.0
LONG_PROBE_EVERY = 4  # every fourth probe may take as long as the account's timeout allows: a server may load a model


def probe_timeout_s(route: Route, failures: int) -> float:
    """How long the next probe may take after so many that have failed."""
    is_long = failures % LONG_PROBE_EVERY == LONG_PROBE_EVERY - 1
    return route.account.timeout_s if is_long else min(TIMEOUT_S, route.account.timeout_s)


class HealthProbes:
    """The probes of this process that are under way: at most one for each route."""

    def __init__(self, upstream: Upstream, router: Router, usage: UsageBuffer) -> None:
        self._upstream = upstream
        self._router = router
        self._usage = usage
        self._tasks: dict[RouteKey, asyncio.Task[None]] = {}

    def start(self, route: Route, alias: str) -> None:
        """Probe the route, unless a probe of it is under way here or in another process. Returns at once."""
        key = route.key
        if key in self._tasks:
            return
        task = self._tasks[key] = asyncio.get_running_loop().create_task(self._probe(route, alias))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def close(self) -> None:
        """Cancel the probes under way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, route: Route, alias: str) -> None:
        with logging_errors("a health probe has failed"):
            outage = self._router.outages.of(route)
            if outage is None or not await self._router.outages.claim_probe(route):
                return
            error = await self._call(route, alias, probe_timeout_s(route, outage.failures))
            if error is None or _is_of_the_call(error):
                self._router.outages.resolve(route)
            else:
                self._router.outages.probe_failed(route, error)

    async def _call(self, route: Route, alias: str, timeout_s: float) -> EmbedmillError | None:
        """Make a call with a text of ours. Returns its error."""
        calls: list[Call] = []
        deadline = time.monotonic() + timeout_s
        context = CallContext(self._router.state_of(route), deadline, calls, purpose="control_call")
        try:
            await self._upstream.embed(control_batch(route.width), route, context)
        except EmbedmillError as error:
            if isinstance(error, UpstreamError):
                error.account, error.upstream_model = route.key
            return error
        finally:
            self._usage.add(
                usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias)
            )
        return None


def _is_of_the_call(error: EmbedmillError) -> bool:
    """True where the route answers, and only refuses this call, or has too many of them."""
    if isinstance(error, UpstreamRateLimited):
        return error.sent
    return isinstance(error, UpstreamError) and error.disposition is Disposition.SPLIT
