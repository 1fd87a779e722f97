"""The shares of quotas that all processes have learned, read from the shared books for an operator's eyes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from redis import Redis

from engine.limiter.learned_quota import risen
from engine.limiter.lua import keys_of

_CELL = re.compile(r"1=([\d.]+):([\d.]+) 2=([\d.]+):([\d.]+)")


def learned_shares(client: Redis, prefix: str, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Of tokens and of requests, by `account|model`; those alone that keep to less than their stated quota.

    `client` decodes its replies. Raises redis.RedisError.
    """
    seconds, microseconds = client.time()
    now = float(seconds) + float(microseconds) / 1e6
    found = {}
    for name in names:
        cell = _CELL.fullmatch(str(client.hget(prefix + keys_of(name)[0], "learned") or ""))
        if cell is None:
            continue
        tokens, tokens_at, requests, requests_at = map(float, cell.groups())
        shares = (risen(tokens, now - tokens_at), risen(requests, now - requests_at))
        if min(shares) < 1.0:
            found[name] = shares
    return found
