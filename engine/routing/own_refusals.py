"""Own refusals: whose calls a route has refused with 429 while it answered a call of ours. Known to this process only.

Perhaps a text of theirs draws the refusal, and no other does. So such a tenant's next 429 shuts the gate for nobody:
a call of ours asks first whether the rate limit is everybody's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

REMEMBERED_S = 600.0
APART_S = 1.0  # those of one moment count once
MOST_TENANTS = 10_000

Key = tuple[str, str, str]  # account, upstream model, tenant


@dataclass(slots=True)
class _Refused:
    count: int
    at: float  # counted, on the event loop's clock
    until: float


class OwnRefusals:
    def __init__(self) -> None:
        self._refused: dict[Key, _Refused] = {}

    def note(self, key: Key) -> int:
        """One more of this tenant's calls was refused alone; how many were, since one passed."""
        known, now = self._refused.pop(key, None), _now()
        if known is None or known.until < now:
            known = _Refused(1, now, now)
        elif now - known.at >= APART_S:
            known.count, known.at = known.count + 1, now
        known.until = now + REMEMBERED_S
        while len(self._refused) >= MOST_TENANTS:
            del self._refused[next(iter(self._refused))]
        self._refused[key] = known
        return known.count

    def forget(self, key: Key) -> None:
        """What was refused has passed, or all are refused: it was no text of theirs."""
        self._refused.pop(key, None)

    def is_known(self, key: Key) -> bool:
        known = self._refused.get(key) if self._refused else None
        return known is not None and known.until >= _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
