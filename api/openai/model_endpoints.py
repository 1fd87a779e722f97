"""/v1/models/{model}/endpoints: the routes of a model, and how each of them does."""

from __future__ import annotations

import math
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from api.http.auth import runtime_of
from api.openai.models import get_model
from engine.routing.route_report import RouteReport, report
from models.base import usd_text

SCOPE = "process"  # whose calls latencies and success rates are of
MAX_AGE_S = 1.0  # of what is known of outages


async def list_endpoints(request: Request) -> Response:
    """The routes of one model. A model whose own name ends in `/endpoints` is answered as that model."""
    runtime = runtime_of(request)
    name = request.path_params["model"]
    if f"{name}/endpoints" in runtime.aliases:
        request.path_params["model"] = f"{name}/endpoints"
        return await get_model(request)
    alias = runtime.alias(name)
    if runtime.drift_monitor.has_probes:
        await runtime.drift_monitor.refresh()
    if runtime.space_monitor.has_checks:
        await runtime.space_monitor.refresh(alias)
    await runtime.router.outages.refresh(max_age_s=MAX_AGE_S)
    routes = [_endpoint(each) for each in report(runtime.router, alias)]
    body = {"object": "list", "model": alias.name, "space": alias.space, "data": routes}
    return Response(orjson.dumps(body), media_type="application/json")


def _endpoint(each: RouteReport) -> dict[str, Any]:
    route, breaker, quotas = each.route, each.breaker, each.quotas
    at = breaker.next_attempt_at
    return {
        "provider": route.provider,
        "kind": route.account.kind,
        "upstream_model": route.upstream_model,
        "priority": route.priority,
        "weight": route.weight,
        "pricing": {"input": usd_text(route.usd_per_million_tokens / 1_000_000)},
        "status": each.status,
        "breaker": {
            "state": breaker.state,
            "reason": breaker.reason,
            "next_attempt_at": None if at is None else math.ceil(at),
        },
        "latency_ms": {name: _rounded(seconds, 1000, 1) for name, seconds in each.latency_s.items()} | {"scope": SCOPE},
        "success_rate": {name: _rounded(share, 1, 4) for name, share in each.success_rate.items()} | {"scope": SCOPE},
        "quota": {
            "requests_per_minute": {"limit": quotas.requests_per_minute, "remaining": quotas.requests_left},
            "tokens_per_minute": {"limit": quotas.tokens_per_minute, "remaining": quotas.tokens_left},
        },
    }


def _rounded(value: float | None, factor: int, digits: int) -> float | None:
    return None if value is None else round(value * factor, digits)
