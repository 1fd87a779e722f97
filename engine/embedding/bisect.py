"""Finding poison: the few inputs that make a provider refuse, or fail on, the whole batch that they are in.

Groups of inputs are sent until each input has its vector or has failed alone; what failed alone is then tried, and
condemned only on evidence (engine/routing/evidence.py). What a message names is a first suspect, sent alone as others.
Inputs sent are bounded for any upstream: MAX_SENDS times the batch, and some. Why, and what it costs:
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

# So unlikely must it be that a fault is an accident before a batch is searched.
SUSPICION = 1e-2
# A batch of n inputs sends at the most this many times n inputs, and SPARE_SENDS more.
MAX_SENDS = 4
SPARE_SENDS = 64
# So many failures in a row without one good answer of the route, and it is asked whether it answers at all.
FAILURES_IN_A_ROW = 8
# Groups that failed, and groups that passed, before it is the number of inputs that makes calls fail: whatever share of
# calls fails at random, less than once in 10,000 searches looks like that.
FAILED_BY_SIZE, PASSED_BY_SIZE = 8, 6
# Controls in a row that may fail before the route counts as down.
MAX_FAILED_CONTROLS = 3


def is_own_limit(error: UpstreamError) -> bool:
    """True for a 429 that some input of the batch draws, and no call of ours."""
    return isinstance(error, UpstreamRateLimited) and error.is_own


def is_fault(error: UpstreamError) -> bool:
    """True for answers that may pass and may be an input's doing: a 5xx, or a 2xx that cannot be used."""
    if error.route_fault:
        return False
    if isinstance(error, UpstreamProtocolError):
        return error.sent
    return isinstance(error, UpstreamUnavailable) and error.status is not None


@dataclass(slots=True)
class Trial:
    """How one batch fares: how often it may be tried on a route, and what else was heard since it first failed."""

    most: int
    on_all: bool = False  # so often on all routes together, though once on each
    faults: int = 0
    heard: int = 0  # good answers of its routes by the time of its first fault

    def failed(self, answers: int) -> None:
        if not self.faults:
            self.heard = answers
        self.faults += 1


class Prober(Protocol):
    """What a search asks of the engine. Inputs are named by their positions in the batch."""

    async def send(self, positions: Sequence[int]) -> UpstreamError | None:
        """Settle these inputs in one call; the error when it is again one to search for. Raises any other error."""

    async def control(self) -> UpstreamError | None:
        """Make a call that is surely good on the route of the search; its error when it fails all the same."""

    async def fail(self, position: int, error: UpstreamError) -> bool:
        """Settle this input with its error. False: nothing more is to be found out, the caller has its answer."""

    async def cut(self, position: int, error: UpstreamError) -> bool:
        """Settle the input by a shorter one, where it was refused as too long and may be cut."""

    def answers(self) -> int:
        """Good answers of the route so far, to whomever in this process."""

    def is_enough(self, error: UpstreamError, failures: int) -> bool:
        """True when so many failures alone, each followed by a success of others, cannot be an accident."""

    def passed_by_itself(self, error: UpstreamError, failures: int) -> None:
        """So many failures were nobody's doing: what had met them was answered well later."""

    def fitting(self, positions: Sequence[int], error: UpstreamTooLarge) -> None:
        """A group of this size is taken, where one of twice the size was too large."""

    def too_many(self, most: int) -> None:
        """Calls of more than `most` inputs fail, whichever they are, and no others do."""

    async def pause(self) -> None:
        """Wait a moment after a fault."""


class _BoundReached(Exception):
    """Enough was sent for one batch."""


class RouteFails(Exception):
    """The route fails whatever it is sent: no input is to blame."""

    def __init__(self, error: UpstreamError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class BySize:
    """Whether the number of inputs alone tells which groups pass: a server whose batches are broken looks like that."""

    passes: int = 0
    failures: int = 0
    most: int = 0  # inputs of the largest group that passed
    least: int = 0  # inputs of the smallest that failed; 0: none did

    def note(self, size: int, *, passed: bool) -> bool:
        """A group of so many inputs passed or failed. True when there is no more doubt: not more than `most` pass."""
        if passed and self.least and size >= self.least:
            self.failures = self.least = 0
        elif not passed and size <= self.most:
            self.passes = self.most = 0
        if passed:
            self.passes, self.most = self.passes + 1, max(self.most, size)
        else:
            self.failures, self.least = self.failures + 1, min(size, self.least or size)
        return not passed and self.failures >= FAILED_BY_SIZE and self.passes >= PASSED_BY_SIZE


@dataclass(slots=True)
class Suspect:
    position: int
    error: UpstreamError
    seen_at: int  # answers of the route when it failed alone the last time
    failures: int = 1


class Search:
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
        self._in_a_row = 0
        self._by_size = BySize()
        for _ in range(sent // count):
            self._by_size.note(count, passed=False)
        self._most = count  # inputs that a group may have
        self._heard = self._heard_at_first = prober.answers()
        self._last: UpstreamError | None = None

    async def run(self, error: UpstreamError, failures: int) -> None:
        """Settle every input. `error` is that of the whole batch, which failed so often with it.

        Raises RouteFails when nothing gets through, and the last error when the bound is reached: what was proved is
        settled then, and the rest is as it was.
        """
        unsettled: UpstreamError | None = None
        if self._count == 1:
            if not await self._prober.cut(0, error):
                self._suspects.append(Suspect(0, error, self._prober.answers()))
            self.pending.clear()
        else:
            try:
                await self._narrow(error, failures)
            except _BoundReached:
                unsettled = self._last or error
        # Who draws a rate limit is not condemned for it: these inputs wait, and the others have their vectors.
        limited = [suspect for suspect in self._suspects if is_own_limit(suspect.error)]
        self._suspects = [suspect for suspect in self._suspects if suspect not in limited]
        self._sends_left = max(0, self._sends_left) + SPARE_SENDS
        while self._suspects:
            # As many at a time as the bound leaves room for: what is tried is tried to its end.
            some = self._suspects[: max(1, self._sends_left // 20)]
            try:
                if not await self._try(list(some)):
                    return
            except _BoundReached:
                raise self._last or error from None
            del self._suspects[: len(some)]
        if unsettled is not None or limited:
            raise unsettled or limited[0].error

    async def _narrow(self, error: UpstreamError, failures: int) -> None:
        """Send groups until each input is settled or has failed alone."""
        bad, size = self._count, self._count  # the first `bad` of `pending` failed together
        named, trust = error.offending_position, True
        halves: list[Sequence[int]] = [self.pending[: bad // 2], self.pending[bad // 2 :]]
        ceiling = self._count - isinstance(error, UpstreamTooLarge)  # groups of more were too large
        while self.pending:
            if self._max_suspects is not None and len(self._suspects) >= self._max_suspects:
                return
            is_named = trust and bad > 1 and named is not None and 0 <= named < bad
            if is_named and named is not None:
                group = [self.pending[named]]
            else:
                group = self.pending[: min(self._most, max(1, bad // 2) if bad else size)]
            failed = await self._send(group)
            if failed is None:
                self._settled(group)
                trust = trust and not is_named
                if bad > 1 and isinstance(error, UpstreamTooLarge) and not is_named:
                    # It was the size: nothing is known of the other half.
                    bad, size = 0, len(group)
                    halves = [half for half in halves if half != group]
                elif bad:
                    if bad == 1:
                        # All of a group that failed have passed in parts: perhaps larger ones fail again.
                        self._prober.passed_by_itself(error, failures)
                        size = max(1, self._by_size.most)
                    bad -= len(group)
                else:
                    if group in halves and isinstance(error, UpstreamTooLarge):
                        self._prober.fitting(group, error)
                    # Not beyond the run of good ones that is usual here.
                    most = self._passed // len(self._suspects) if len(self._suspects) > 1 else self._count
                    size = max(1, min(size * 2, most, ceiling))
            elif len(group) == 1:
                cut = await self._prober.cut(group[0], failed)
                if not cut:
                    # For a caller who waits it is enough that others passed before or after.
                    hasty = self._max_suspects is not None and not is_fault(failed)
                    seen_at = self._heard_at_first if hasty else self._prober.answers()
                    self._suspects.append(Suspect(group[0], failed, seen_at))
                self._settled(group, passed=0)
                bad, ceiling = 0, self._count
                found = max(1, len(self._suspects))
                # Where names are right nothing is known of the others: all of them, or fewer with each that is found.
                size = max(1, self._count // 4 ** (found - 1) if is_named else self._passed // found)
            else:
                failures = 1 if not bad else failures + 1
                bad, error = len(group), failed
                if isinstance(failed, UpstreamTooLarge):
                    ceiling = min(ceiling, len(group) - 1)
                middle = len(group) // 2
                halves = [group[:middle], group[middle:]]
            named = failed.offending_position if failed is not None else None

    async def _try(self, suspects: list[Suspect]) -> bool:
        """Condemn or acquit these. False: nothing more is to be found out."""
        while suspects:
            await self._hear_of_others(suspects[0].error, max(each.seen_at for each in suspects))
            for suspect in list(suspects):
                if self._prober.is_enough(suspect.error, suspect.failures):
                    suspects.remove(suspect)
                    if not await self._prober.fail(suspect.position, suspect.error):
                        return False
                    continue
                failed = await self._send([suspect.position])
                if failed is None:
                    self._prober.passed_by_itself(suspect.error, suspect.failures)
                    suspects.remove(suspect)
                    continue
                suspect.failures, suspect.error = suspect.failures + 1, failed
                suspect.seen_at = self._prober.answers()
        return True

    async def _hear_of_others(self, error: UpstreamError, seen_at: int) -> None:
        """Return once the route has answered others well since. Raises RouteFails when it does not."""
        for _ in range(MAX_FAILED_CONTROLS):
            if self._prober.answers() > seen_at:
                return
            failed = await self._prober.control()
            if failed is None:
                return
            error = failed
            await self._prober.pause()
        raise RouteFails(error)

    async def _send(self, positions: Sequence[int]) -> UpstreamError | None:
        if len(positions) > self._sends_left:
            raise _BoundReached
        self._sends_left -= len(positions)
        failed = await self._prober.send(positions)
        if self._prober.answers() != self._heard or failed is None:
            self._heard, self._in_a_row = self._prober.answers(), 0
        if not isinstance(failed, UpstreamTooLarge) and self._by_size.note(len(positions), passed=failed is None):
            self._most = self._by_size.most
            self._prober.too_many(self._most)
        if failed is None:
            return None
        self._in_a_row += 1
        self._last = failed
        if self._in_a_row >= FAILURES_IN_A_ROW:
            await self._hear_of_others(failed, self._prober.answers())
            self._in_a_row = 0
        if is_fault(failed):
            await self._prober.pause()
        return failed

    def _settled(self, group: Sequence[int], *, passed: int | None = None) -> None:
        gone = set(group)
        self.pending = [position for position in self.pending if position not in gone]
        self._passed += len(group) if passed is None else passed
