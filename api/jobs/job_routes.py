"""GET /v1/embeddings/jobs/{job_id}/routes: which routes embedded the job's inputs, and what failed on each."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import caller_of, runtime_of
from api.http.json_response import json_response
from engine.jobs.reading import job_rows
from engine.jobs.reading.job_routes import RouteShare, load_route_shares
from models.base import usd_text
from models.usage import UsageKind


async def get_job_routes(request: Request) -> Response:
    """The routes of a job with their shares of its inputs."""
    params.reject_unknown_params(request)
    runtime = runtime_of(request)
    job = await job_rows.get_job(runtime.store, caller_of(request).project, request.path_params["job_id"])
    routes = await load_route_shares(runtime.database, job.id)
    inputs = sum(route.by_kind[UsageKind.DELIVERED].inputs for route in routes)
    return json_response({"object": "list", "data": [_route_object(route, inputs) for route in routes]})


def _route_object(route: RouteShare, all_inputs: int) -> dict[str, Any]:
    kinds = {
        kind: {
            "calls": share.calls,
            "inputs": share.inputs,
            "tokens": share.tokens,
            "cost_usd": usd_text(share.cost_usd),
        }
        for kind, share in route.by_kind.items()
    }
    return {
        "provider": route.provider,
        "upstream_model": route.upstream_model,
        "share": round(route.by_kind[UsageKind.DELIVERED].inputs / all_inputs, 4) if all_inputs else 0.0,
        **kinds,
        "codes": route.codes,
    }
