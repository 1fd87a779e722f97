"""Where a process asks for one account and upstream model: the shared book, or its own while that is out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.limiter import lua, quota
from engine.limiter.bucket import AcquireDecision, AcquireRequest, BucketState, CallResult, CallSignal, Verdict
from engine.limiter.learned_quota import risen, shape_of
from engine.limiter.quota import BucketParams
from engine.limiter.redis_store import RedisStore
from engine.observability.telemetry import PACED_ALONE
from engine.process.process_names import is_dead_local_process

# A slot in the shared book is a lease. Its process renews it; those of a process that died are free after this time.
SLOT_LEASE_S = 12.0
RENEW_EVERY_S = 4.0
LOOK_FOR_DEAD_EVERY_S = 1.0
COUNT_EVERY_S = 5.0
SEEN_S = 30.0
# Of a Redis that was never reached: how many processes may be out there is not known.
UNKNOWN_PROCESSES = 4
WHOLE_SHARES = (1.0, 1.0)


class BucketCoordinator:
    """Asks and ends calls, in Redis where it can. The clock of its own book is the event loop's."""

    def __init__(
        self, shared: RedisStore, name: str, *, most_under_way: int, slot_s: float, concurrency_is_global: bool = False
    ) -> None:
        self._shared = shared
        self._shares_places = concurrency_is_global and shared.configured
        self._keys = lua.keys_of(name)
        self._most_under_way = most_under_way
        self._slot_s = slot_s
        self._shapes = (quota.UNLIMITED, quota.UNLIMITED)
        self._own = BucketState(most_under_way, slot_s)
        self._alone = not shared.configured
        self._processes = 1 if self._alone else UNKNOWN_PROCESSES
        self._counted_at = -COUNT_EVERY_S
        self._returns = 0
        # What the shared book said last, for a Redis that has lost it.
        self._debts = (0.0, 0.0)
        self._debts_at = 0.0
        # Of the quotas of tokens and requests, to which calls keep since 429s have shown them: as it was heard last.
        self.shares = WHOLE_SHARES
        self._shares_at = 0.0
        # Slots that Redis was not told about when their calls ended: it counts them until it hears of it.
        self._unreturned: list[str] = []
        # Slots in the shared book whose calls are under way here.
        self._held: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._looked_at = -LOOK_FOR_DEAD_EVERY_S
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

    def keep_to(self, tokens: BucketParams, requests: BucketParams) -> None:
        """From now on keep to these quotas, of all processes together."""
        self._shapes = (tokens, requests)
        self._share()

    async def ask(self, ask: AcquireRequest) -> AcquireDecision:
        """May this call start?"""
        now = asyncio.get_running_loop().time()
        counted = now - self._counted_at >= COUNT_EVERY_S
        returns = self._shared.returns
        returned = returns != self._returns
        said = await self._shared.run(
            lua.ASK,
            self._keys,
            lua.ask_arguments(
                ask,
                most_under_way=self._most_under_way,
                slot_s=min(self._slot_s, SLOT_LEASE_S),
                shapes=self._shapes,
                process=self._shared.process if counted else "",
                seen_s=SEEN_S,
                least_debts=self._bursts() if returned else self._remembered(now),
                shares=self._known_shares(now),
                insist=returned,
            ),
        )
        now = asyncio.get_running_loop().time()
        if said is None:
            self._go_alone(now)
            if self._shared.configured:
                PACED_ALONE.inc()
            answer = self._own.ask(ask, now)
            self.places = self._own.places
            self._know(self._own.shares(now), now)
        else:
            self._alone, self._returns = False, returns
            verdict, wait, processes, tokens, requests, places, *shares = said
            answer = AcquireDecision(Verdict(verdict), float(wait))
            if int(processes) > 0:
                self._processes, self._counted_at = int(processes), now
                self._share()
            self._debts, self._debts_at, self.places = (float(tokens), float(requests)), now, float(places)
            if returns == self._shared.returns:  # else Redis is back with this answer, and hears of it next time
                self._hear(shares, now)
            while (
                self._unreturned and await self._tell(CallResult(self._unreturned[-1], CallSignal.NOTHING)) is not None
            ):
                self._unreturned.pop()
            if answer.verdict is Verdict.GO and answer.wait_s <= 0:
                self._hold(ask.slot)
            elif answer.verdict is Verdict.BUSY and now - self._looked_at >= LOOK_FOR_DEAD_EVERY_S:
                self._looked_at = now
                await self._free_the_dead()
        if answer.verdict is Verdict.GATE and answer.wait_s > 0:
            self._gate_until = max(self._gate_until, now + answer.wait_s)
        return answer

    async def end(self, end: CallResult) -> None:
        """Give a call's place back and settle what it cost."""
        self._held.discard(end.slot)
        of_own = end.slot in self._own.slots
        said = None if of_own else await self._tell(end)
        now = asyncio.get_running_loop().time()
        if said is None:
            if not of_own:
                self._go_alone(now)
            if self._shared.configured and not of_own:
                self._unreturned = [*self._unreturned[-999:], end.slot]
            self._own.end(end, now)
            if end.lesson is CallSignal.LIMITED:
                self._gate_until = max(self._gate_until, self._own.gate_until)
            self.places = self._own.places
            if self._alone:
                self._know(self._own.shares(now), now)
            return
        gate_s, self.places = float(said[0]), float(said[1])
        self._hear(said[2:], now)
        if gate_s > 0:
            self._gate_until = max(self._gate_until, now + gate_s)

    async def close(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    def _go_alone(self, now: float) -> None:
        """Redis is away: from now on this process keeps to its part of the quotas."""
        if not self._alone:
            self._alone = True
            self._own.begin(now, shares=self._known_shares(now), gate_until=self._gate_until)

    def _know(self, shares: tuple[float, float], now: float) -> None:
        self.shares, self._shares_at = shares, now

    def _hear(self, told: Sequence[str], now: float) -> None:
        self._know((float(told[0]), float(told[1])) if told else WHOLE_SHARES, now)

    def _known_shares(self, now: float) -> tuple[float, float]:
        passed_s = now - self._shares_at
        return risen(self.shares[0], passed_s), risen(self.shares[1], passed_s)

    def _hold(self, slot: str) -> None:
        self._held.add(slot)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._held:
                await self._shared.run(lua.RENEW, self._keys[1:2], [SLOT_LEASE_S, *self._held])

    async def _free_the_dead(self) -> None:
        """Free the slots of processes of this machine that are no more: nobody need wait for their leases."""
        for slot in await self._shared.run(lua.ACTIVE_STATUSES, self._keys[1:2], []) or ():
            if is_dead_local_process(slot.rpartition("-")[0].partition("#")[0]):
                await self._tell(CallResult(slot, CallSignal.NOTHING))

    async def _tell(self, end: CallResult) -> list[Any] | None:
        arguments = lua.end_arguments(end, most_under_way=self._most_under_way, shapes=self._shapes)
        return await self._shared.run(lua.END, self._keys[:2], arguments)

    def _remembered(self, now: float) -> tuple[float, float]:
        passed_s = now - self._debts_at
        return (
            max(0.0, self._debts[0] - self._shapes[0].rate * self.shares[0] * passed_s),
            max(0.0, self._debts[1] - self._shapes[1].rate * self.shares[1] * passed_s),
        )

    def _bursts(self) -> tuple[float, float]:
        tokens, requests = self._shapes
        return shape_of(tokens, self.shares[0], 0.0).burst, shape_of(requests, self.shares[1], 1.0).burst

    def _own_shapes(self) -> tuple[BucketParams, BucketParams]:
        return self._shapes[0].shared_by(self._processes), self._shapes[1].shared_by(self._processes)

    def _share(self) -> None:
        tokens, requests = self._own_shapes()
        places = max(1, self._most_under_way // self._processes)
        self._own = replace(
            self._own, tokens=tokens, requests=requests, most_under_way=places, places=min(self._own.places, places)
        )
