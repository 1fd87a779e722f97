"""The bisection that isolates poison inputs: the few that make a provider refuse, or fail on, their whole batch.

Sends groups of inputs until each input has its vector or has failed alone. An input that failed alone is a suspect: it
is tried again and failed for good only on evidence (`CallStatistics`). An input that an error message names is sent
alone first. Inputs sent are bounded for any upstream: MAX_SENDS times the batch, plus SPARE_SENDS. This module is the
algorithm only, it makes calls through a Prober; `failed_batch` applies it to a batch of a run. Reasons and costs:
docs/decisions/0008-finding-poison.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamTooLarge,
    UpstreamUnavailable,
)

# A batch is bisected when its faults are flakes with a probability below this.
P_FLAKE_TO_BISECT = 1e-2
# A batch of n inputs sends at most this many times n inputs, and SPARE_SENDS more.
MAX_SENDS = 4
SPARE_SENDS = 64
# After so many failures in a row without a success of the route, a control call shows whether it works at all.
FAILURES_IN_A_ROW = 8
# Groups that failed and groups that passed before the group size is held to be the cause. With any rate of random
# failures, fewer than one in 10,000 bisections looks like that.
FAILED_BY_SIZE, PASSED_BY_SIZE = 8, 6
# So many control calls in a row may fail before the route counts as down.
MAX_FAILED_CONTROLS = 3


def is_tenant_rate_limit(error: UpstreamError) -> bool:
    """True for a 429 that some input of the batch draws, and no control call."""
    return isinstance(error, UpstreamRateLimited) and error.is_own


def is_server_fault(error: UpstreamError) -> bool:
    """True for errors that may pass and may be caused by an input: a 5xx, or a 2xx that cannot be used."""
    if error.route_fault:
        return False
    if isinstance(error, UpstreamProtocolError):
        return error.sent
    return isinstance(error, UpstreamUnavailable) and error.status is not None


@dataclass(slots=True)
class Attempts:
    """The attempts of one batch: how many a route may get, and the faults so far."""

    maximum: int
    shared: bool = False  # the maximum holds for all routes together, though each gets one attempt
    faults: int = 0
    successes_before: int = 0  # successes of its routes by the time of its first fault

    def record_fault(self, successes: int) -> None:
        """Count a fault. `successes`: of the routes so far."""
        if not self.faults:
            self.successes_before = successes
        self.faults += 1


class Prober(Protocol):
    """The calls and records that a bisection needs. Inputs are named by their positions in the batch."""

    async def probe(self, positions: Sequence[int]) -> UpstreamError | None:
        """Send these inputs in one call, and record their vectors. Returns an error that an input may have caused.

        Raises any other error.
        """

    async def control(self) -> UpstreamError | None:
        """Make a control call on the route of the bisection; returns its error."""

    async def fail_input(self, position: int, error: UpstreamError) -> bool:
        """Record the error as the input's outcome. False: the bisection may end, the caller has its answer."""

    async def truncate_further(self, position: int, error: UpstreamError) -> bool:
        """Embed a shorter form of the input, where it was refused as too long and may be truncated."""

    def success_count(self) -> int:
        """Successes of the route so far, of all callers of this process."""

    def is_conclusive(self, error: UpstreamError, failures: int) -> bool:
        """True when so many failures alone, each followed by a success of others, are no coincidence."""

    def record_flakes(self, error: UpstreamError, failures: int) -> None:
        """So many failures had no cause in the inputs: the same inputs passed later."""

    def record_fitting_size(self, positions: Sequence[int], error: UpstreamTooLarge) -> None:
        """A group of this size passed, where one of twice the size was too large."""

    def record_max_inputs(self, count: int) -> None:
        """Calls of more than `count` inputs fail, whatever the inputs, and smaller ones do not."""

    async def pause(self) -> None:
        """Wait a moment after a fault."""


class _BoundReached(Exception):
    """The batch has sent as many inputs as it may."""


class RouteFails(Exception):
    """The route fails whatever it is sent: no input is at fault."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class GroupSizes:
    """Whether the size of a group alone decides if it passes: true of a server whose batch size is limited."""

    passes: int = 0
    failures: int = 0
    max_passed: int = 0  # inputs of the largest group that passed
    min_failed: int = 0  # inputs of the smallest group that failed; 0: none did

    def record(self, size: int, *, passed: bool) -> bool:
        """A group of so many inputs passed or failed. True when groups larger than `max_passed` surely fail."""
        if passed and self.min_failed and size >= self.min_failed:
            self.failures = self.min_failed = 0
        elif not passed and size <= self.max_passed:
            self.passes = self.max_passed = 0
        if passed:
            self.passes, self.max_passed = self.passes + 1, max(self.max_passed, size)
        else:
            self.failures, self.min_failed = self.failures + 1, min(size, self.min_failed or size)
        return not passed and self.failures >= FAILED_BY_SIZE and self.passes >= PASSED_BY_SIZE


@dataclass(slots=True)
class Suspect:
    """An input that failed alone."""

    position: int
    error: UpstreamError
    successes_before: int  # successes of the route when the input failed alone the last time
    failures: int = 1


@dataclass(slots=True)
class _Narrowing:
    """The state of one pass that narrows a failed batch down to inputs that fail alone."""

    bad: int  # the first so many of `pending` failed together
    size: int  # inputs of the next group while nothing is known to be bad
    error: UpstreamError  # of the last group that failed
    failures: int  # in a row, of the bad group
    halves: list[Sequence[int]]  # of the bad group
    ceiling: int  # larger groups were too large
    named: int | None  # position within the bad group that the error names
    trusts_names: bool = True  # until a named input passes alone

    @property
    def is_named(self) -> bool:
        """True when the next input to send is the one that the error names."""
        return self.trusts_names and self.bad > 1 and self.named is not None and 0 <= self.named < self.bad


class PoisonBisection:
    """One batch that failed as a whole. `pending` are the positions that have no outcome yet."""

    def __init__(self, prober: Prober, count: int, *, sent: int, max_suspects: int | None = None) -> None:
        """`sent`: inputs that calls of the whole batch have sent. `max_suspects`: how many to look for."""
        self._prober = prober
        self._count = count
        self._sends_left = MAX_SENDS * count - sent
        self._max_suspects = max_suspects
        self.pending = list(range(count))
        self._suspects: list[Suspect] = []
        self._passed = 0
        self._failures_in_a_row = 0
        self._group_sizes = GroupSizes()
        for _ in range(sent // count):
            self._group_sizes.record(count, passed=False)
        self._max_group = count
        self._successes = self._successes_at_start = prober.success_count()
        self._last_error: UpstreamError | None = None

    async def run(self, error: UpstreamError, failures: int) -> None:
        """Give every input an outcome. `error` is that of the whole batch, which failed so often with it.

        Raises RouteFails when no call to the route succeeds, and the last error when the bound is reached: what was
        proved is recorded then, and the other inputs have no outcome.
        """
        unsettled: UpstreamError | None = None
        if self._count == 1:
            if not await self._prober.truncate_further(0, error):
                self._suspects.append(Suspect(0, error, self._prober.success_count()))
            self.pending.clear()
        else:
            try:
                await self._narrow(error, failures)
            except _BoundReached:
                unsettled = self._last_error or error
        # An input that draws a rate limit is not failed for it: it waits, and the others have their vectors.
        limited = [suspect for suspect in self._suspects if is_tenant_rate_limit(suspect.error)]
        self._suspects = [suspect for suspect in self._suspects if suspect not in limited]
        self._sends_left = max(0, self._sends_left) + SPARE_SENDS
        while self._suspects:
            # As many at a time as the bound leaves room for: a suspect's trial must reach its end.
            suspects = self._suspects[: max(1, self._sends_left // 20)]
            try:
                if not await self._try_suspects(list(suspects)):
                    return
            except _BoundReached:
                raise self._last_error or error from None
            del self._suspects[: len(suspects)]
        if unsettled is not None or limited:
            raise unsettled or limited[0].error

    async def _narrow(self, error: UpstreamError, failures: int) -> None:
        """Send groups until each input has its vector or has failed alone."""
        middle = self._count // 2
        state = _Narrowing(
            bad=self._count,
            size=self._count,
            error=error,
            failures=failures,
            halves=[self.pending[:middle], self.pending[middle:]],
            ceiling=self._count - isinstance(error, UpstreamTooLarge),
            named=error.offending_position,
        )
        while self.pending:
            if self._max_suspects is not None and len(self._suspects) >= self._max_suspects:
                return
            is_named = state.is_named
            if is_named and state.named is not None:
                group = [self.pending[state.named]]
            else:
                group = self.pending[: min(self._max_group, max(1, state.bad // 2) if state.bad else state.size)]
            failed = await self._send(group)
            if failed is None:
                self._group_passed(state, group, is_named=is_named)
            elif len(group) == 1:
                await self._input_failed(state, group, failed, is_named=is_named)
            else:
                state.failures = 1 if not state.bad else state.failures + 1
                state.bad, state.error = len(group), failed
                if isinstance(failed, UpstreamTooLarge):
                    state.ceiling = min(state.ceiling, len(group) - 1)
                middle = len(group) // 2
                state.halves = [group[:middle], group[middle:]]
            state.named = failed.offending_position if failed is not None else None

    def _group_passed(self, state: _Narrowing, group: Sequence[int], *, is_named: bool) -> None:
        """All of the group have their vectors: choose the next group."""
        self._remove_pending(group)
        state.trusts_names = state.trusts_names and not is_named
        if state.bad > 1 and isinstance(state.error, UpstreamTooLarge) and not is_named:
            # The size was the cause: nothing is known of the other half.
            state.bad, state.size = 0, len(group)
            state.halves = [half for half in state.halves if half != group]
        elif state.bad:
            if state.bad == 1:
                # All of a group that failed have passed in parts: perhaps larger groups fail again.
                self._prober.record_flakes(state.error, state.failures)
                state.size = max(1, self._group_sizes.max_passed)
            state.bad -= len(group)
        else:
            if group in state.halves and isinstance(state.error, UpstreamTooLarge):
                self._prober.record_fitting_size(group, state.error)
            # No larger than the usual run of inputs between two suspects.
            usual_run = self._passed // len(self._suspects) if len(self._suspects) > 1 else self._count
            state.size = max(1, min(state.size * 2, usual_run, state.ceiling))

    async def _input_failed(
        self, state: _Narrowing, group: Sequence[int], failed: UpstreamError, *, is_named: bool
    ) -> None:
        """One input has failed alone: it is truncated, or becomes a suspect."""
        if not await self._prober.truncate_further(group[0], failed):
            # For a caller who waits, successes of others before the failure count too.
            is_quick = self._max_suspects is not None and not is_server_fault(failed)
            successes = self._successes_at_start if is_quick else self._prober.success_count()
            self._suspects.append(Suspect(group[0], failed, successes))
        self._remove_pending(group, passed=0)
        state.bad, state.ceiling = 0, self._count
        suspects = max(1, len(self._suspects))
        # Where names are right nothing is known of the other inputs: try all, or fewer with each suspect.
        state.size = max(1, self._count // 4 ** (suspects - 1) if is_named else self._passed // suspects)

    async def _try_suspects(self, suspects: list[Suspect]) -> bool:
        """Fail or clear each suspect. Returns False when the bisection may end."""
        while suspects:
            await self._wait_for_success(suspects[0].error, max(each.successes_before for each in suspects))
            for suspect in list(suspects):
                if self._prober.is_conclusive(suspect.error, suspect.failures):
                    suspects.remove(suspect)
                    if not await self._prober.fail_input(suspect.position, suspect.error):
                        return False
                    continue
                failed = await self._send([suspect.position])
                if failed is None:
                    self._prober.record_flakes(suspect.error, suspect.failures)
                    suspects.remove(suspect)
                    continue
                suspect.failures, suspect.error = suspect.failures + 1, failed
                suspect.successes_before = self._prober.success_count()
        return True

    async def _wait_for_success(self, error: UpstreamError, successes_before: int) -> None:
        """Return once another call to the route has succeeded since. Raises RouteFails when none does."""
        for _ in range(MAX_FAILED_CONTROLS):
            if self._prober.success_count() > successes_before:
                return
            failed = await self._prober.control()
            if failed is None:
                return
            error = failed
            await self._prober.pause()
        raise RouteFails(error)

    async def _send(self, positions: Sequence[int]) -> UpstreamError | None:
        """Send a group, and count what comes of it. Raises _BoundReached or RouteFails."""
        if len(positions) > self._sends_left:
            raise _BoundReached
        self._sends_left -= len(positions)
        failed = await self._prober.probe(positions)
        if self._prober.success_count() != self._successes or failed is None:
            self._successes, self._failures_in_a_row = self._prober.success_count(), 0
        if not isinstance(failed, UpstreamTooLarge) and self._group_sizes.record(len(positions), passed=failed is None):
            self._max_group = self._group_sizes.max_passed
            self._prober.record_max_inputs(self._max_group)
        if failed is None:
            return None
        self._failures_in_a_row += 1
        self._last_error = failed
        if self._failures_in_a_row >= FAILURES_IN_A_ROW:
            await self._wait_for_success(failed, self._prober.success_count())
            self._failures_in_a_row = 0
        if is_server_fault(failed):
            await self._prober.pause()
        return failed

    def _remove_pending(self, group: Sequence[int], *, passed: int | None = None) -> None:
        removed = set(group)
        self.pending = [position for position in self.pending if position not in removed]
        self._passed += len(group) if passed is None else passed
