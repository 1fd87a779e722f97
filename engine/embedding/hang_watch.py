"""Calls that are late: is it the call or the route? Asked while they hang, so that nobody waits for them to time out.

Beside calls of bulk work that have had no answer for far longer than usual, a small call of ours is made. When it is
answered, what still hangs on an old connection is given up and made again. When it is not, the route is down: the calls
are given up, their shards go back unspent, and health probes go on as after any outage, for all processes.

A call that is given up may be billed, so nothing is given up where it is not known what is usual; but for a call of
which it was seen that the route answered nothing while it hung, then answered others, and still not that call.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Protocol

from engine.embedding.outage_check import Run, control
from engine.limiter.call_waits import CallWaits, UnansweredCall
from engine.limiter.max_wait import IGNORING_CONCURRENCY
from engine.routing.outages import route_key
from models.errors import UpstreamError, UpstreamRateLimited

FIRST_LOOK_S = 3.0
LOOK_S = 0.25
# Short of what is left of a call's time where calls are fast: else they would time out, and be made again in vain.
PROBE_TIMEOUT_S = 3.0
PROBE_EVERY_S = 4.25  # longer than a probe that fails, and than its result is shared with others
# A server that answers again may still work on what it was sent before.
GRACE_S = 8.0
ANSWERS_TO_OTHERS = 2  # for each call without one, since the late call was sent: then it hangs alone


class LateRun(Run, Protocol):
    """What is needed of a run whose calls are watched."""

    waits: CallWaits


def watch(run: LateRun) -> None:
    """From now on, look at calls of the run that are late."""
    run.waits.on_sent = functools.partial(_sent, run)


async def settled(waits: CallWaits) -> None:
    """Wait for calls of ours beside those of a run that ends: what they cost is to be written down with it."""
    if waits.checks:
        await asyncio.wait(waits.checks, timeout=PROBE_TIMEOUT_S + 1.0)


def _sent(run: LateRun, call: UnansweredCall) -> Callable[[bool], None]:
    look = _Look(run, call)
    return look.call_ended


class _Look:
    def __init__(self, run: LateRun, call: UnansweredCall) -> None:
        self._run = run
        self._call = call
        self._is_probe = run.router.outages.of(call.route) is not None  # sent because the route is down
        self._timer = asyncio.get_running_loop().call_later(FIRST_LOOK_S, self._begin)
        self._task: asyncio.Task[None] | None = None
        self._is_asking = False
        self._has_ended = False
        self._answers_before = run.router.health(call.route).answers
        self._hangs_alone: bool | None = None  # decided when it is late
        self._late_answers = -1  # of the route to others, when the grace of this call began
        self._grace_until = 0.0

    def call_ended(self, is_answered: bool) -> None:
        self._has_ended = True
        if is_answered and self._call.age_s >= FIRST_LOOK_S:
            self._run.router.health(self._call.route).late_answers += 1
        self._timer.cancel()
        if self._task is not None and not self._is_asking:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_looking())
        self._run.waits.checks.add(self._task)
        self._task.add_done_callback(self._run.waits.checks.discard)

    async def _keep_looking(self) -> None:
        run, call = self._run, self._call
        while not self._has_ended:
            await run.router.outages.refresh()
            if run.router.outages.of(call.route) is not None and not self._is_probe and self._may_join():
                call.give_up()
                return
            if call.is_late:
                if self._hangs_alone is None:
                    # A provider that has become slow answers small calls as well: then others of the run are late too.
                    others = run.router.health(call.route).answers - self._answers_before
                    self._hangs_alone = others >= ANSWERS_TO_OTHERS * run.waits.unanswered
                await self._ask()
                if not self._has_ended and self._is_lost():
                    call.give_up()
                    return
            if not self._has_ended:
                await asyncio.sleep(LOOK_S)

    def _may_join(self) -> bool:
        """True when the call hangs as those did that have shown the outage."""
        return self._call.latency.is_known or self._call.is_late

    async def _ask(self) -> None:
        """Make a call of ours where none was made lately, and note what comes of it."""
        run, route, now = self._run, self._call.route, asyncio.get_running_loop().time
        probes = run.router.hang_probes[route_key(route)]
        if now() - probes.asked_at < PROBE_EVERY_S or run.stop.reason is not None:
            return
        probes.asked_at = now()
        answers = run.router.health(route).answers
        self._is_asking = True
        try:
            error = await control(run, route, timeout_s=PROBE_TIMEOUT_S, max_wait=IGNORING_CONCURRENCY)
        finally:
            self._is_asking = False
        if error is None:
            probes.answered_at = now()
        elif isinstance(error, UpstreamError) and not isinstance(error, UpstreamRateLimited):
            probes.failed_at = now()
            has_answered = run.router.health(route).answers != answers
            if self._call.is_overdue and not self._has_ended and not self._is_probe and not has_answered:
                run.router.report(route, error)
                self._call.give_up()

    def _is_lost(self) -> bool:
        """True when the route answers, and this call can no longer be expected to be."""
        call, now = self._call, asyncio.get_running_loop().time()
        probes = self._run.router.hang_probes[route_key(call.route)]
        if probes.answered_at < call.began:
            return False
        answers = self._run.router.health(call.route).late_answers
        has_failed = call.began < probes.failed_at < probes.answered_at
        if call.is_overdue and not self._is_probe and now - probes.answered_at < PROBE_EVERY_S:
            return has_failed or bool(self._hangs_alone)
        if not has_failed:
            return False
        # It works on what it was sent before: this call may be next. Answers to calls that were sent later, as those
        # that were given up and are made again, say nothing of it.
        if answers != self._late_answers:
            self._late_answers, self._grace_until = answers, now + max(GRACE_S, call.latency.late_s(call.tokens) or 0.0)
        return now >= self._grace_until
