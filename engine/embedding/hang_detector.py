"""Hang detector: finds out whether a late call or its route hangs, before the call times out.

Beside bulk calls that take far longer than usual, a control call is made. If it is answered, the late calls hang alone:
they are given up and made again. If not, the route is down: the late calls are given up, their shards go back without
a spent attempt, and health probes go on as in any outage, for all processes.

A call that is given up may be billed. So a call is given up only where the usual latency is known, or where the route
answered nothing while the call hung, then answered others, and still not this call.
"""

from __future__ import annotations

import asyncio

from engine.embedding.diagnosis import Run, control_call
from engine.limiter.call_waits import CallWaits, UnansweredCall
from engine.limiter.max_wait import IGNORING_CONCURRENCY
from models.errors import UpstreamError, UpstreamRateLimited

FIRST_CHECK_S = 3.0
CHECK_EVERY_S = 0.25
# Less than the time that a late call has left where calls are fast: else it would time out before.
PROBE_TIMEOUT_S = 3.0
PROBE_EVERY_S = 4.25  # longer than a probe that fails, and than its result is shared with others
# A server that answers again may still work on what it was sent before.
GRACE_S = 8.0
# A call hangs alone if the route answered so many others, for each call without an answer, since it was sent.
ANSWERS_TO_OTHERS = 2


def watch(run: Run) -> None:
    """Check the calls of the run from now on."""
    run.waits.on_sent = lambda call: _HangCheck(run, call).call_ended


async def wait_for_checks(waits: CallWaits) -> None:
    """Wait for the control calls beside a run that ends: their cost is recorded with the run."""
    if waits.checks:
        await asyncio.wait(waits.checks, timeout=PROBE_TIMEOUT_S + 1.0)


class _HangCheck:
    """Checks one call until it ends."""

    def __init__(self, run: Run, call: UnansweredCall) -> None:
        self._run = run
        self._call = call
        self._state = run.router.state_of(call.route)
        self._is_probe = run.router.outages.of(call.route) is not None  # sent because the route is down
        self._timer = asyncio.get_running_loop().call_later(FIRST_CHECK_S, self._begin)
        self._task: asyncio.Task[None] | None = None
        self._is_probing = False
        self._has_ended = False
        self._successes_before = self._state.statistics.successes
        self._hangs_alone: bool | None = None  # decided when it is late
        self._late_successes = -1  # of the route, when the grace of this call began
        self._grace_until = 0.0

    def call_ended(self, is_answered: bool) -> None:
        """Stop checking."""
        self._has_ended = True
        if is_answered and self._call.age_s >= FIRST_CHECK_S:
            self._state.statistics.late_successes += 1
        self._timer.cancel()
        if self._task is not None and not self._is_probing:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._check_until_ended())
        self._run.waits.checks.add(self._task)
        self._task.add_done_callback(self._run.waits.checks.discard)

    async def _check_until_ended(self) -> None:
        run, call = self._run, self._call
        while not self._has_ended:
            await run.router.outages.refresh()
            if run.router.outages.of(call.route) is not None and not self._is_probe and self._hangs_like_outage():
                call.give_up()
                return
            if call.is_late:
                if self._hangs_alone is None:
                    # A provider that has become slow answers small calls too: then other calls of the run are late.
                    others = self._state.statistics.successes - self._successes_before
                    self._hangs_alone = others >= ANSWERS_TO_OTHERS * run.waits.unanswered
                await self._probe_route()
                if not self._has_ended and self._is_lost():
                    call.give_up()
                    return
            if not self._has_ended:
                await asyncio.sleep(CHECK_EVERY_S)

    def _hangs_like_outage(self) -> bool:
        """True when the call may hang for the same reason as the calls that revealed the outage."""
        return self._call.learned_timeout.is_known or self._call.is_late

    async def _probe_route(self) -> None:
        """Make a control call unless one was made lately, and record its result."""
        run, route, now = self._run, self._call.route, asyncio.get_running_loop().time
        probes = self._state.hang_probes
        if now() - probes.sent_at < PROBE_EVERY_S or run.stop.reason is not None:
            return
        probes.sent_at = now()
        successes = self._state.statistics.successes
        self._is_probing = True
        try:
            error = await control_call(run, route, timeout_s=PROBE_TIMEOUT_S, max_wait=IGNORING_CONCURRENCY)
        finally:
            self._is_probing = False
        if error is None:
            probes.answered_at = now()
        elif isinstance(error, UpstreamError) and not isinstance(error, UpstreamRateLimited):
            probes.failed_at = now()
            has_answered = self._state.statistics.successes != successes
            if self._call.is_overdue and not self._has_ended and not self._is_probe and not has_answered:
                run.router.report(route, error)
                self._call.give_up()

    def _is_lost(self) -> bool:
        """True when the route answers, and can no longer be expected to answer this call."""
        call, now = self._call, asyncio.get_running_loop().time()
        probes = self._state.hang_probes
        if probes.answered_at < call.began:
            return False
        late_successes = self._state.statistics.late_successes
        has_failed = call.began < probes.failed_at < probes.answered_at
        if call.is_overdue and not self._is_probe and now - probes.answered_at < PROBE_EVERY_S:
            return has_failed or bool(self._hangs_alone)
        if not has_failed:
            return False
        # The route works on what it was sent before: this call may be next. Answers to calls that were sent later, such
        # as those that were given up and are made again, are no evidence.
        if late_successes != self._late_successes:
            self._late_successes = late_successes
            self._grace_until = now + max(GRACE_S, call.learned_timeout.late_s(call.tokens) or 0.0)
        return now >= self._grace_until
