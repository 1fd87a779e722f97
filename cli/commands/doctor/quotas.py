"""The doctor's check of quotas: whether a provider refuses calls below what is configured for its account."""

from __future__ import annotations

from collections.abc import Mapping

from redis import Redis

from cli.commands.doctor.brokers import client_options
from cli.commands.doctor.finding import Finding
from engine.config.settings import Settings
from engine.connections.urls import redis_or_broker
from engine.limiter.quota_report import learned_shares
from engine.queue.broker import key_prefix
from models.embedding import Account, Alias


def quotas(settings: Settings, aliases: Mapping[str, Alias]) -> Finding:
    """A warning where answers 429 have shown that a real quota is lower than the configured one."""
    routes = {
        f"{route.provider}|{route.upstream_model}": route.account
        for alias in aliases.values()
        for route in alias.routes
    }
    limited = {
        name: account for name, account in routes.items() if account.tokens_per_minute or account.requests_per_minute
    }
    if not limited:
        return Finding("quotas", "ok", "none is configured")
    if not settings.redis:
        return Finding("quotas", "ok", "without Redis each process keeps to its part; embedmill_quota_share tells more")
    options = redis_or_broker(settings.redis, "EMBEDMILL_REDIS_URL").redis_options()
    with Redis(**options, **client_options(), decode_responses=True) as client:
        learned = learned_shares(client, key_prefix(settings.namespace), limited)
    if not learned:
        return Finding("quotas", "ok", f"as configured: {', '.join(sorted(limited))}")
    details = "; ".join(_share_text(name, limited[name], *shares) for name, shares in learned.items())
    fix = "give the account the quotas that the provider really allows; until then they are tried again by themselves"
    return Finding("quotas", "warn", f"answers 429 have lowered: {details}", fix)


def _share_text(name: str, account: Account, of_tokens: float, of_requests: float) -> str:
    parts = [
        f"{int(limit * share):,} of {limit:,} {unit} a minute"
        for limit, share, unit in (
            (account.tokens_per_minute, of_tokens, "tokens"),
            (account.requests_per_minute, of_requests, "requests"),
        )
        if limit and share < 1.0
    ]
    return f"{name.replace('|', ' ')} to {' and '.join(parts)}"
