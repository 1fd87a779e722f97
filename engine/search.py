"""Finding poison: the few inputs that make a provider refuse, or fail on, the whole batch that they are in.

A binary search that calls left halves only: a left half that succeeds is settled, and shows that the other holds the
guilty one. What was not called on the way waits, and goes in one call at the end. So one poison in a batch costs about
log2(batch) + 2 calls; when there are many, groups shrink until hardly a call is made in vain. No input is found guilty
that did not fail alone. Why, and what it costs: docs/decisions/0008-finding-poison.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.errors import UpstreamError, UpstreamProtocolError, UpstreamUnavailable

# So unlikely must it be that a fault is an accident before a batch is searched, and before an input is found guilty.
SUSPICION = 1e-2
PROOF = 1e-5
# What an input that a provider fails on gets by itself, where the bound on calls leaves that many.
TRIES_ALONE = 5
# How many moments a search stays for one more answer to others: it proves that the last accused is to blame.
WAITS_FOR_OTHERS = 8


def is_fault(error: UpstreamError) -> bool:
    """True for answers that may pass and may be an input's doing: a 5xx, or a 2xx that cannot be used."""
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


class Court(Protocol):
    """What a search asks of the engine. Batches are named by the positions of their inputs in the one searched."""

    async def send(self, positions: Sequence[int], most: int) -> UpstreamError | None:
        """Settle these inputs in one call, tried `most` times; the error when it is again one to search for.

        Raises any other error: it says nothing about the inputs.
        """

    async def sentence(self, position: int, error: UpstreamError) -> None:
        """Settle this input with its error."""

    def answers(self) -> int:
        """Good answers of the routes so far, to whomever in this process."""

    def by_chance(self, faults: int) -> float:
        """How likely so many faults of one call are an accident."""

    def acquit(self, faults: int) -> None:
        """So many faults passed by themselves: nobody was guilty of them."""

    async def pause(self) -> None:
        """Wait a moment after a fault."""


@dataclass(frozen=True, slots=True)
class Accused:
    position: int
    error: UpstreamError
    before: int  # answers when it was first among the suspects of its group


class Search:
    """One batch that failed as a whole."""

    def __init__(self, court: Court, count: int, trial: Trial, *, tries: int) -> None:
        """`tries`: of each call after a refusal. After a fault calls are tried once: more would prove nothing."""
        self._court = court
        self._count = count
        self._faults = trial.faults
        self._tries = tries
        self._calls = max(0, trial.faults - 1)
        self._waiting: list[int] = []
        self._accused: list[Accused] = []
        self._faults_of_group = trial.faults
        self._in_vain = 0  # calls that failed since the routes last answered anything
        self._heard = 0

    async def run(self, error: UpstreamError, *, before: int) -> None:
        """Settle every input. Raises when the routes look down after all, with what was proved settled.

        `before`: answers of the routes when the batch was known to be bad; whoever is guilty failed while they grew.
        """
        suspects = list(range(self._count))
        group_size, found = self._count, 0
        ended = False
        try:
            while True:
                searched_from = self._calls
                await self._narrow(suspects, error, before)
                found += self._calls > searched_from
                if found > 1 and self._calls > searched_from:  # there are several: smaller groups fail less often
                    group_size = max(1, group_size // 4)
                failed = None
                while self._waiting and failed is None:
                    suspects, self._waiting = self._waiting[:group_size], self._waiting[group_size:]
                    before, self._faults_of_group = self._court.answers(), 1
                    failed = await self._send(suspects)
                    if failed is None:
                        group_size = min(self._count, group_size * 2)
                if failed is None:
                    break
                error = failed
            for _ in range(WAITS_FOR_OTHERS):
                if all(each.before < self._court.answers() for each in self._accused):
                    break
                await self._court.pause()
            ended = True
        finally:
            unproved = await self._sentence()
        if ended and unproved:
            raise unproved[0].error

    async def _narrow(self, suspects: list[int], error: UpstreamError, before: int) -> None:
        """Find one guilty input among suspects that failed together. What is not called waits."""
        failed_together = True  # or what is left when others of the group were found good
        while len(suspects) > 1:
            if failed_together and error.guilty is not None and error.guilty < len(suspects):
                named = suspects.pop(error.guilty)
                self._waiting[:0] = suspects
                self._accused.append(Accused(named, error, -1))
                return
            middle = len(suspects) // 2
            left, right = suspects[:middle], suspects[middle:]
            failed = await self._send(left)
            if failed is None:
                suspects, failed_together = right, False
            else:
                self._waiting[:0] = right
                suspects, error, failed_together = left, failed, True
                self._faults_of_group += 1
        tries_left = self._tries_alone(error) - failed_together
        if tries_left > 0:
            failed = await self._send(suspects, tries_left if is_fault(error) else self._tries)
            if failed is None:
                self._court.acquit(self._faults_of_group)
                return
            error = failed
        self._accused.append(Accused(suspects[0], error, before if is_fault(error) else -1))

    def _tries_alone(self, error: UpstreamError) -> int:
        """How often an input must fail alone: a refusal is final, a fault must be no accident."""
        if not is_fault(error):
            return 1
        left_of_bound = int(2 * math.log2(self._count)) - self._calls - bool(self._waiting)
        tries = min(max(left_of_bound, 1), TRIES_ALONE)
        while self._court.by_chance(self._faults + tries) > PROOF and tries < 10:
            tries += 1
        return tries

    async def _send(self, positions: Sequence[int], most: int | None = None) -> UpstreamError | None:
        if most is None:
            most = 1 if self._faults else self._tries
        self._calls += 1
        error = await self._court.send(positions, most)
        if self._heard != self._court.answers():
            self._heard, self._in_vain = self._court.answers(), 0
        if error is None or not is_fault(error):
            return error
        self._in_vain += 1
        if self._in_vain > self._count.bit_length() + 2:
            raise error  # nothing works, for nobody: an outage, which is waited for
        await self._court.pause()
        return error

    async def _sentence(self) -> list[Accused]:
        """Settle the accused while whose failing the routes answered others; return those of whom that is not known."""
        answers = self._court.answers()
        for each in self._accused:
            if each.before < answers:
                await self._court.sentence(each.position, each.error)
        return [each for each in self._accused if each.before >= answers]
