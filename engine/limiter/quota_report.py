"""Reads the learned shares of quotas from Redis, for an operator."""

from __future__ import annotations

import re
from collections.abc import Iterable

from redis import Redis

from engine.limiter.learned_quota import recovered_share
from engine.limiter.lua import keys_of

_LEARNED = re.compile(r"1=([\d.]+):([\d.]+) 2=([\d.]+):([\d.]+)")


def learned_shares(client: Redis, prefix: str, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Shares of tokens and of requests, by `account|model`; only of those below their stated quota.

    `client` must decode its replies. Raises redis.RedisError.
    """
    seconds, microseconds = client.time()
    now = float(seconds) + float(microseconds) / 1e6
    found = {}
    for name in names:
        field = _LEARNED.fullmatch(str(client.hget(prefix + keys_of(name)[0], "learned") or ""))
        if field is None:
            continue
        tokens, tokens_at, requests, requests_at = map(float, field.groups())
        shares = (recovered_share(tokens, now - tokens_at), recovered_share(requests, now - requests_at))
        if min(shares) < 1.0:
            found[name] = shares
    return found
