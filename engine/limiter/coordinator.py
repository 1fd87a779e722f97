"""Coordinates one account and upstream model with all processes: state in Redis, or local state while Redis is down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engine.limiter import lua, quota
from engine.limiter.bucket import AcquireDecision, AcquireRequest, BucketState, CallResult, CallSignal, Verdict
from engine.limiter.learned_quota import params_for_share, recovered_share
from engine.limiter.quota import BucketParams
from engine.limiter.redis_store import RedisStore
from engine.observability.telemetry import LOCAL_FALLBACKS
from engine.process.process_names import is_dead_local_process

# A slot in Redis is a lease that its process renews; the slots of a process that died are free after this time.
SLOT_LEASE_S = 12.0
RENEW_EVERY_S = 4.0
DEAD_CHECK_EVERY_S = 1.0
COUNT_EVERY_S = 5.0
PROCESS_ALIVE_S = 30.0
MAX_UNSETTLED_SLOTS = 1000
# Assumed number of processes while Redis was never reached.
UNKNOWN_PROCESSES = 4
WHOLE_SHARES = (1.0, 1.0)


class BucketCoordinator:
    """Acquires and settles calls, in Redis where it answers. The clock of the local state is the event loop's."""

    def __init__(
        self,
        store: RedisStore,
        name: str,
        *,
        max_concurrency: int,
        slot_ttl_s: float,
        concurrency_is_global: bool = False,
    ) -> None:
        self._store = store
        self._concurrency_is_global = concurrency_is_global and store.is_configured
        self._keys = lua.keys_of(name)
        self._max_concurrency = max_concurrency
        self._slot_ttl_s = slot_ttl_s
        self._params = (quota.UNLIMITED, quota.UNLIMITED)
        self.has_quota = False  # of tokens or requests, stated or learned
        # Each call must be acquired here: there is a quota, or a concurrency limit of all processes.
        self.is_needed = self._concurrency_is_global
        self._local = BucketState(max_concurrency, slot_ttl_s)
        self._is_local = not store.is_configured
        self._processes = 1 if self._is_local else UNKNOWN_PROCESSES
        self._counted_at = -COUNT_EVERY_S
        self._reconnects = 0
        # Last debts reported by Redis; sent back with the next request in case Redis lost its data.
        self._debts = (0.0, 0.0)
        self._debts_at = 0.0
        # Last known shares of the stated quotas of tokens and requests that calls may use, learned from 429s.
        self.shares = WHOLE_SHARES
        self._shares_at = 0.0
        # Slots whose calls ended while Redis was down: Redis counts them until they are settled.
        self._unsettled_slots: list[str] = []
        # Slots in Redis whose calls run in this process.
        self._active_slots: set[str] = set()
        self._renewing: asyncio.Task[None] | None = None
        self._dead_checked_at = -DEAD_CHECK_EVERY_S
        self.concurrency_limit = float(max_concurrency)
        self._cooldown_until = 0.0  # on the event loop's clock

    def cooldown_s(self) -> float:
        """Seconds until the circuit's cooldown ends, as far as this process knows; 0: there is none."""
        return max(0.0, self._cooldown_until - asyncio.get_running_loop().time()) if self._cooldown_until else 0.0

    def start_cooldown(self, seconds: float) -> None:
        """After a 429: stop calls of this process at once, before the shared state is updated."""
        self._cooldown_until = max(self._cooldown_until, asyncio.get_running_loop().time() + seconds)

    def split_among(self, processes: int) -> None:
        """Without Redis: use 1/n of each quota, where n is the number of processes."""
        if not self._store.is_configured and processes != self._processes:
            self._processes = max(1, processes)
            self._split()

    def set_limits(self, tokens: BucketParams, requests: BucketParams) -> None:
        """Set the quotas, which hold for all processes together."""
        self._params = (tokens, requests)
        self.has_quota = bool(tokens.rate or requests.rate)
        self.is_needed = self.has_quota or self._concurrency_is_global
        self._split()

    async def acquire(self, request: AcquireRequest) -> AcquireDecision:
        """Decide whether the call may start, in Redis or, while that is down, by the local state."""
        now = asyncio.get_running_loop().time()
        is_count_due = now - self._counted_at >= COUNT_EVERY_S
        reconnects = self._store.reconnects
        has_reconnected = reconnects != self._reconnects
        reply = await self._store.eval(
            lua.ACQUIRE,
            self._keys,
            lua.acquire_arguments(
                request,
                max_concurrency=self._max_concurrency,
                slot_ttl_s=min(self._slot_ttl_s, SLOT_LEASE_S),
                params=self._params,
                process=self._store.process if is_count_due else "",
                process_alive_s=PROCESS_ALIVE_S,
                min_debts=self._bursts() if has_reconnected else self._decayed_debts(now),
                shares=self._current_shares(now),
                overrides=has_reconnected,
            ),
        )
        now = asyncio.get_running_loop().time()
        if reply is None:
            self._fall_back(now)
            if self._store.is_configured:
                LOCAL_FALLBACKS.inc()
            decision = self._local.acquire(request, now)
            self.concurrency_limit = self._local.concurrency_limit
            self._set_shares(self._local.shares(now), now)
        else:
            decision = self._read_decision(reply, reconnects, now)
            await self._settle_unsettled()
            if decision.verdict is Verdict.ALLOW and decision.wait_s <= 0:
                self._track_slot(request.slot)
            elif decision.verdict is Verdict.AT_CAPACITY and now - self._dead_checked_at >= DEAD_CHECK_EVERY_S:
                self._dead_checked_at = now
                await self._free_dead_slots()
        if decision.verdict is Verdict.COOLING_DOWN and decision.wait_s > 0:
            self._cooldown_until = max(self._cooldown_until, now + decision.wait_s)
        return decision

    def _read_decision(self, reply: Sequence[Any], reconnects: int, now: float) -> AcquireDecision:
        """Read the reply of lua.ACQUIRE. `reconnects`: of the store when it was asked."""
        self._is_local, self._reconnects = False, reconnects
        verdict, wait, processes, tokens, requests, limit, *shares = reply
        if int(processes) > 0:
            self._processes, self._counted_at = int(processes), now
            self._split()
        self._debts, self._debts_at, self.concurrency_limit = (float(tokens), float(requests)), now, float(limit)
        # If Redis came back with this very reply, its shares may be lost: the next request restores them.
        if reconnects == self._store.reconnects:
            self._read_shares(shares, now)
        return AcquireDecision(Verdict(verdict), float(wait))

    async def settle(self, result: CallResult) -> None:
        """Free the call's slot and correct what was charged for it."""
        self._active_slots.discard(result.slot)
        is_local_slot = result.slot in self._local.slots
        reply = None if is_local_slot else await self._settle_remote(result)
        now = asyncio.get_running_loop().time()
        if reply is None:
            if not is_local_slot:
                self._fall_back(now)
            if self._store.is_configured and not is_local_slot:
                self._unsettled_slots = [*self._unsettled_slots[1 - MAX_UNSETTLED_SLOTS :], result.slot]
            self._local.settle(result, now)
            if result.signal is CallSignal.RATE_LIMITED:
                self._cooldown_until = max(self._cooldown_until, self._local.cooldown_until)
            self.concurrency_limit = self._local.concurrency_limit
            if self._is_local:
                self._set_shares(self._local.shares(now), now)
            return
        cooldown_s, self.concurrency_limit = float(reply[0]), float(reply[1])
        self._read_shares(reply[2:], now)
        if cooldown_s > 0:
            self._cooldown_until = max(self._cooldown_until, now + cooldown_s)

    async def close(self) -> None:
        """Stop renewing the leases of slots."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    def _fall_back(self, now: float) -> None:
        """Redis is down: use the local state from now on, with this process's part of the quotas."""
        if not self._is_local:
            self._is_local = True
            self._local.begin(now, shares=self._current_shares(now), cooldown_until=self._cooldown_until)

    def _set_shares(self, shares: tuple[float, float], now: float) -> None:
        self.shares, self._shares_at = shares, now

    def _read_shares(self, reply: Sequence[str], now: float) -> None:
        self._set_shares((float(reply[0]), float(reply[1])) if reply else WHOLE_SHARES, now)

    def _current_shares(self, now: float) -> tuple[float, float]:
        passed_s = now - self._shares_at
        return recovered_share(self.shares[0], passed_s), recovered_share(self.shares[1], passed_s)

    def _track_slot(self, slot: str) -> None:
        self._active_slots.add(slot)
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew_slots())

    async def _renew_slots(self) -> None:
        while self._active_slots:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._active_slots:
                await self._store.eval(lua.RENEW_SLOTS, self._keys[1:2], [SLOT_LEASE_S, *self._active_slots])

    async def _settle_unsettled(self) -> None:
        """Free slots in Redis whose calls ended while it was down."""
        while self._unsettled_slots:
            if await self._settle_remote(CallResult(self._unsettled_slots[-1], CallSignal.NONE)) is None:
                return
            self._unsettled_slots.pop()

    async def _free_dead_slots(self) -> None:
        """Free slots of dead processes of this machine before their leases expire."""
        for slot in await self._store.eval(lua.LIST_SLOTS, self._keys[1:2], []) or ():
            if is_dead_local_process(slot.rpartition("-")[0].partition("#")[0]):
                await self._settle_remote(CallResult(slot, CallSignal.NONE))

    async def _settle_remote(self, result: CallResult) -> list[Any] | None:
        arguments = lua.settle_arguments(result, max_concurrency=self._max_concurrency, params=self._params)
        return await self._store.eval(lua.SETTLE, self._keys[:2], arguments)

    def _decayed_debts(self, now: float) -> tuple[float, float]:
        """The last debts that Redis reported, drained up to now."""
        passed_s = now - self._debts_at
        return (
            max(0.0, self._debts[0] - self._params[0].rate * self.shares[0] * passed_s),
            max(0.0, self._debts[1] - self._params[1].rate * self.shares[1] * passed_s),
        )

    def _bursts(self) -> tuple[float, float]:
        tokens, requests = self._params
        return (
            params_for_share(tokens, self.shares[0], 0.0).burst,
            params_for_share(requests, self.shares[1], 1.0).burst,
        )

    def _split(self) -> None:
        """Give the local state its part of the quotas and of the concurrency limit."""
        tokens, requests = self._params
        limit = max(1, self._max_concurrency // self._processes)
        self._local = replace(
            self._local,
            tokens=tokens.split_among(self._processes),
            requests=requests.split_among(self._processes),
            max_concurrency=limit,
            concurrency_limit=min(self._local.concurrency_limit, limit),
        )
