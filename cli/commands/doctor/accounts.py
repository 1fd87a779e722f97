"""The doctor's check of provider accounts: one small call to each, or what those calls would cost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal

from cli.commands.doctor.finding import Finding
from cli.error_messages import explain
from cli.output.terminal import err
from engine.config.settings import Settings
from engine.ledger import usage_rows
from engine.ledger.call_cost import cost_of
from engine.planning.token_estimator import estimate
from engine.process.background import surviving
from engine.route_state.control_call import control_batch
from engine.runtime import Runtime
from engine.storage.database import DATABASE_ERRORS
from engine.upstream.call import CallContext
from models.embedding import Alias, Call, Route
from models.errors import EmbedmillError, UpstreamError
from models.usage import OPERATOR_PROJECT

PROBE = "Is this account well?"
PROBE_S = 20.0


def check_accounts(settings: Settings, aliases: Mapping[str, Alias], *, tried: bool) -> list[Finding]:
    """The result of one call to each account with `tried`; else what these calls would cost."""
    cost = probe_cost(aliases)
    if not tried:
        return [Finding("accounts", "ok", f"not tried: `embedmill doctor --providers` makes {cost}")]
    err.print(f"trying each account: {cost}", markup=False)
    findings: list[Finding] = []

    def report(error: Exception) -> None:
        message = error.message if isinstance(error, EmbedmillError) else str(explain(error))
        findings.append(Finding("accounts", "fail", message, "mend what stands above first"))

    with surviving(report):  # the report must come to its end
        findings += accounts(settings, aliases)
    return findings


def cheapest_routes(aliases: Mapping[str, Alias]) -> dict[str, tuple[Alias, Route]]:
    """For each account the cheapest route to try it on."""
    cheapest: dict[str, tuple[Alias, Route]] = {}
    for alias in aliases.values():
        for route in alias.routes:
            best = cheapest.get(route.provider)
            if best is None or route.usd_per_million_tokens < best[1].usd_per_million_tokens:
                cheapest[route.provider] = (alias, route)
    return cheapest


def probe_cost(aliases: Mapping[str, Alias]) -> str:
    """The number and cost of the calls that would try each account."""
    routes = cheapest_routes(aliases)
    count = estimate(PROBE)
    usd = sum((cost_of(count, route) for _, route in routes.values()), Decimal(0))
    calls = "1 call" if len(routes) == 1 else f"{len(routes)} calls"
    return f"{calls} of {count} tokens, about ${usd:.8f}".rstrip("0").rstrip(".")


def accounts(settings: Settings, aliases: Mapping[str, Alias]) -> list[Finding]:
    """One small call to each account, written to the ledger like any other of the operator's."""
    routes = cheapest_routes(aliases)

    async def probe_all() -> list[Finding]:
        runtime = Runtime.open(settings)
        try:
            findings = await asyncio.gather(*(_probe(runtime, name, *route) for name, route in routes.items()))
            with suppress(EmbedmillError, *DATABASE_ERRORS):  # then it is kept in the spool
                await runtime.usage.flush()
            return list(findings)
        finally:
            await runtime.close()

    return asyncio.run(probe_all())


async def _probe(runtime: Runtime, name: str, alias: Alias, route: Route) -> Finding:
    check, calls, started_at = f"account {name}", list[Call](), time.monotonic()
    deadline = started_at + min(PROBE_S, route.account.timeout_s)
    try:
        context = CallContext(runtime.router.state_of(route), deadline, calls, purpose="doctor")
        rows, *_ = await runtime.upstream.embed(control_batch(route.width, text=PROBE), route, context)
    except UpstreamError as error:
        advice = (error.advice or "see docs/providers.md").replace("{account}", name)
        return Finding(check, "fail", error.message, advice)
    except EmbedmillError as error:
        return Finding(check, "fail", error.message, "see docs/providers.md")
    finally:
        runtime.usage.add(
            usage_rows.of_calls(calls, project=OPERATOR_PROJECT, key_id="", lane="interactive", alias=alias.name)
        )
    took_ms = (time.monotonic() - started_at) * 1000
    return Finding(check, "ok", f"{route.upstream_model}: {rows.shape[1]} numbers in {took_ms:.0f} ms")
