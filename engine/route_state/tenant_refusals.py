"""Tenants whose calls one route refused with 429 while it answered a control call. Known to this process only.

Perhaps a text of theirs draws the 429, and no other text does. So such a tenant's next 429 starts no cooldown for other
callers: a control call shows first whether all calls are rate limited.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

REMEMBERED_S = 600.0
MIN_INTERVAL_S = 1.0  # refusals of one moment count once
MAX_TENANTS = 10_000


@dataclass(slots=True)
class _Refusals:
    count: int
    counted_at: float  # on the event loop's clock
    until: float


class TenantRefusals:
    """Counts 429s of one route that only one tenant met, by tenant."""

    __slots__ = ("by_tenant",)

    def __init__(self) -> None:
        self.by_tenant: dict[str, _Refusals] = {}  # mostly empty

    def record(self, tenant: str) -> int:
        """Count one more 429 that this tenant alone met. Returns the number since one of its calls passed."""
        entry, now = self.by_tenant.pop(tenant, None), _now()
        if entry is None or entry.until < now:
            entry = _Refusals(1, now, now)
        elif now - entry.counted_at >= MIN_INTERVAL_S:
            entry.count, entry.counted_at = entry.count + 1, now
        entry.until = now + REMEMBERED_S
        while len(self.by_tenant) >= MAX_TENANTS:
            del self.by_tenant[next(iter(self.by_tenant))]
        self.by_tenant[tenant] = entry
        return entry.count

    def clear(self, tenant: str) -> None:
        """The refused batch has passed, or all tenants are refused: no text of this tenant was the cause."""
        self.by_tenant.pop(tenant, None)

    def is_known(self, tenant: str) -> bool:
        """True when the tenant met such a 429 lately."""
        entry = self.by_tenant.get(tenant)
        return entry is not None and entry.until >= _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
