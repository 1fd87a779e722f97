"""/healthz, /readyz, /metrics: for machines that look after machines. No key needed, nothing secret told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import orjson
from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from api.guard import runtime_of
from engine import presence
from engine.telemetry import exposition
from models.errors import StorageUnavailable

PROBE_S = 5.0


async def healthz(request: Request) -> Response:
    return Response(b'{"status":"ok"}', media_type="application/json")


async def readyz(request: Request) -> Response:
    """200 when database and broker answer and a worker was seen lately, else 503; with each one's state."""
    runtime = runtime_of(request)

    async def workers() -> bool:
        return await presence.alive(runtime.database, runtime.settings.worker_seen_s) > 0

    async def database() -> bool:
        await runtime.database.ping()
        return True

    database_ok, broker_ok, workers_ok = await asyncio.gather(
        _holds(database()), _holds(runtime.doorbell.reachable()), _holds(workers())
    )
    ready = database_ok and broker_ok and workers_ok
    state = {True: "ok", False: "unavailable"}
    body = {
        "status": "ready" if ready else "not_ready",
        "database": state[database_ok],
        "broker": state[broker_ok],
        "workers": state[workers_ok],
    }
    headers = {} if ready else {"retry-after": "1"}
    return Response(orjson.dumps(body), 200 if ready else 503, headers, "application/json")


async def metrics(request: Request) -> Response:
    with contextlib.suppress(StorageUnavailable):  # figures of the process itself are still true
        await request.app.state.gauges.refresh()
    return Response(exposition(), headers={"content-type": CONTENT_TYPE_LATEST})


async def _holds(probe: Awaitable[bool]) -> bool:
    try:
        async with asyncio.timeout(PROBE_S):
            return await probe
    except (StorageUnavailable, TimeoutError):
        return False
