"""/healthz, /readyz and /metrics, for load balancers and monitoring: no key is needed, and nothing secret is shown.

/health, /ping and /version are what clients of other servers ask before their first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata

import orjson
from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from api.http.auth import runtime_of
from api.http.lifecycle import Lifecycle
from api.readiness import Readiness
from api.shared_task import SharedTask
from engine.observability import telemetry
from engine.storage.database import DATABASE_ERRORS
from engine.storage.database_gauges import Gauges

DATABASE_WAIT_S = 1.0


async def healthz(request: Request) -> Response:
    """200 as long as the process answers."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def health(request: Request) -> Response:
    """/healthz by the name that model servers give it."""
    return await healthz(request)


async def ping(request: Request) -> Response:
    """/healthz by the name that hosts of containers give it."""
    return await healthz(request)


async def version(request: Request) -> Response:
    """The version of embedmill."""
    return Response(orjson.dumps({"version": importlib.metadata.version("embedmill")}), media_type="application/json")


async def readyz(request: Request) -> Response:
    """200 when database and broker answer and a worker was seen lately, else 503; with each one's state.

    `unused_routes` has the reason for each route that gets no calls; other routes serve, so it changes no status.
    """
    readiness: Readiness = request.app.state.readiness
    lifecycle: Lifecycle = request.app.state.lifecycle
    parts = await readiness.parts()
    ready = all(parts.values()) and not lifecycle.is_draining
    body: dict[str, object] = {"status": "ready" if ready else "draining" if lifecycle.is_draining else "not_ready"}
    body |= {name: "ok" if is_ok else "unavailable" for name, is_ok in parts.items()}
    if unused := runtime_of(request).router.unused_routes():
        body["unused_routes"] = unused
    headers = {} if ready else {"retry-after": "1"}
    return Response(orjson.dumps(body), 200 if ready else 503, headers, "application/json")


async def metrics(request: Request) -> Response:
    """All metrics as Prometheus text."""
    exposition: SharedTask[bytes] = request.app.state.exposition
    return Response(await exposition.result(), headers={"content-type": CONTENT_TYPE_LATEST})


def shared_metrics_text(gauges: Gauges) -> SharedTask[bytes]:
    """Renders the metrics as text, once for all concurrent scrapes, because anybody may scrape.

    A scrape waits at most DATABASE_WAIT_S for the database's figures; the process's own are always current.
    """

    async def refresh() -> None:
        with contextlib.suppress(*DATABASE_ERRORS):
            await gauges.refresh()

    refresh_task = SharedTask(refresh)

    async def render() -> bytes:
        await asyncio.wait({refresh_task.start()}, timeout=DATABASE_WAIT_S)
        return await asyncio.to_thread(telemetry.render_metrics)

    return SharedTask(render)
