"""Where a process asks for one account and upstream model: the shared book, or its own while that is out of reach."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from engine.limiter import quota, script
from engine.limiter.book import Answer, Ask, Book, End, Lesson, Verdict
from engine.limiter.quota import Shape
from engine.limiter.shared import Shared
from engine.telemetry import PACED_ALONE

COUNT_EVERY_S = 5.0
SEEN_S = 30.0
# Of a Redis that was never reached: how many processes may be out there is not known.
UNKNOWN_PROCESSES = 4


class Desk:
    """Asks and ends calls, in Redis where it can. The clock of its own book is the event loop's."""

    def __init__(
        self, shared: Shared, name: str, *, most_under_way: int, slot_s: float, shares_places: bool = False
    ) -> None:
        self._shared = shared
        self._shares_places = shares_places and shared.configured
        self._keys = script.keys_of(name)
        self._most_under_way = most_under_way
        self._slot_s = slot_s
        self._shapes = (quota.UNLIMITED, quota.UNLIMITED)
        self._own = Book(most_under_way, slot_s)
        self._alone = not shared.configured
        self._processes = 1 if self._alone else UNKNOWN_PROCESSES
        self._counted_at = -COUNT_EVERY_S
        self._returns = 0
        # What the shared book said last, for a Redis that has lost it.
        self._debts = (0.0, 0.0)
        self._debts_at = 0.0
        # Slots that Redis was not told about when their calls ended: it counts them until it hears of it.
        self._unreturned: list[str] = []
        self.places = float(most_under_way)
        self._gate_until = 0.0  # on the loop's clock

    @property
    def limited(self) -> bool:
        return bool(self._shapes[0].rate or self._shapes[1].rate)

    @property
    def needed(self) -> bool:
        """True where each call must be asked for: there is a quota, or places that all processes share."""
        return self.limited or self._shares_places

    def gate_s(self) -> float:
        """Seconds until the gate opens, as far as this process knows; 0: it is open."""
        return max(0.0, self._gate_until - asyncio.get_running_loop().time()) if self._gate_until else 0.0

    def close_gate(self, seconds: float) -> None:
        """A 429 has come: nobody here starts before the book is told how long the gate is closed."""
        self._gate_until = max(self._gate_until, asyncio.get_running_loop().time() + seconds)

    def share_among(self, processes: int) -> None:
        """So many processes keep to the quotas, as far as one without Redis can know."""
        if not self._shared.configured and processes != self._processes:
            self._processes = max(1, processes)
            self._share()

    def keep_to(self, tokens: Shape, requests: Shape) -> None:
        """From now on keep to these quotas, of all processes together."""
        self._shapes = (tokens, requests)
        self._share()

    async def ask(self, ask: Ask) -> Answer:
        """May this call start?"""
        now = asyncio.get_running_loop().time()
        counted = now - self._counted_at >= COUNT_EVERY_S
        returned = self._shared.returns != self._returns
        said = await self._shared.run(
            script.ASK,
            self._keys,
            script.ask_arguments(
                ask,
                most_under_way=self._most_under_way,
                slot_s=self._slot_s,
                shapes=self._shapes,
                process=self._shared.process if counted else "",
                seen_s=SEEN_S,
                least_debts=self._bursts() if returned else self._remembered(now),
                insist=returned,
            ),
        )
        now = asyncio.get_running_loop().time()
        if said is None:
            if not self._alone:
                self._alone = self._shared.configured
                # Others may have started calls up to now: what they can have started at once is taken as started.
                self._own.token_debt, self._own.request_debt = (shape.burst for shape in self._own_shapes())
                self._own.at, self._own.gate_until = now, self._gate_until
            if self._shared.configured:
                PACED_ALONE.inc()
            answer = self._own.ask(ask, now)
            self.places = self._own.places
        else:
            self._alone, self._returns = False, self._shared.returns
            verdict, wait, processes, tokens, requests, places = said
            answer = Answer(Verdict(verdict), float(wait))
            if int(processes) > 0:
                self._processes, self._counted_at = int(processes), now
                self._share()
            self._debts, self._debts_at, self.places = (float(tokens), float(requests)), now, float(places)
            while self._unreturned and await self._tell(End(self._unreturned[-1], Lesson.NOTHING)) is not None:
                self._unreturned.pop()
        if answer.verdict is Verdict.GATE and answer.wait_s > 0:
            self._gate_until = max(self._gate_until, now + answer.wait_s)
        return answer

    async def end(self, end: End) -> None:
        """Give a call's place back and settle what it cost."""
        of_own = end.slot in self._own.slots
        said = None if of_own else await self._tell(end)
        now = asyncio.get_running_loop().time()
        if said is None:
            if self._shared.configured and not of_own:
                self._unreturned = [*self._unreturned[-999:], end.slot]
            self._own.end(end, now)
            if end.lesson is Lesson.LIMITED:
                self._gate_until = max(self._gate_until, self._own.gate_until)
            self.places = self._own.places
            return
        gate_s, self.places = float(said[0]), float(said[1])
        if gate_s > 0:
            self._gate_until = max(self._gate_until, now + gate_s)

    async def _tell(self, end: End) -> list[Any] | None:
        arguments = script.end_arguments(end, most_under_way=self._most_under_way, shapes=self._shapes)
        return await self._shared.run(script.END, self._keys[:2], arguments)

    def _remembered(self, now: float) -> tuple[float, float]:
        passed_s = now - self._debts_at
        return (
            max(0.0, self._debts[0] - self._shapes[0].rate * passed_s),
            max(0.0, self._debts[1] - self._shapes[1].rate * passed_s),
        )

    def _bursts(self) -> tuple[float, float]:
        return self._shapes[0].burst, self._shapes[1].burst

    def _own_shapes(self) -> tuple[Shape, Shape]:
        return self._shapes[0].shared_by(self._processes), self._shapes[1].shared_by(self._processes)

    def _share(self) -> None:
        tokens, requests = self._own_shapes()
        places = max(1, self._most_under_way // self._processes)
        self._own = replace(
            self._own, tokens=tokens, requests=requests, most_under_way=places, places=min(self._own.places, places)
        )
