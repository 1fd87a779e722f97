"""The app: routes by name, one guard, one error envelope, one runtime."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from api import docs, embeddings, errors, jobs, models, openapi, operations
from api.budgets import Budgets
from api.envelope import RequestEnvelope
from api.guard import PUBLIC, GuardedRoute
from api.lifecycle import Lifecycle
from api.loop_lag import watch_lag
from api.readiness import Readiness
from engine.config.secrets import REFRESH_EVERY_S
from engine.config.settings import Settings
from engine.jobs.execution.provider_wait import try_changed_secrets
from engine.jobs.reading.long_poll import JobWatches
from engine.observability.telemetry import configure_logging
from engine.planning import tokens
from engine.process.background import ErrorLog, repeat
from engine.process.memory import tune_memory
from engine.queue import service_heartbeats, worker_heartbeats
from engine.runtime import Runtime
from engine.storage.database_gauges import Gauges

STOP_S = 2.0


def create_app(runtime: Runtime | None = None) -> ASGIApp:
    """Build the app. Without a runtime it opens one from the environment; fakes enter by giving one."""
    if runtime is None:
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format, service="api")
        runtime = Runtime.open(settings)
    return RequestEnvelope(build(runtime))


def build(runtime: Runtime) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        duties = [
            asyncio.create_task(watch_lag()),
            asyncio.create_task(app.state.readiness.keep_fresh()),
            asyncio.create_task(service_heartbeats.heartbeat_loop(runtime.database, "api")),
            asyncio.create_task(
                repeat(lambda: try_changed_secrets(runtime), ErrorLog("reading secret files"), every_s=REFRESH_EVERY_S)
            ),
            asyncio.create_task(
                worker_heartbeats.quota_share_loop(runtime.database, runtime.upstream, runtime.settings.worker_seen_s)
            ),
        ]
        tune_memory()
        await asyncio.to_thread(tokens.load)
        runtime.usage.start()
        try:
            yield
        finally:
            for duty in duties:
                duty.cancel()
            await asyncio.wait(duties, timeout=STOP_S)  # the heartbeat signs off
            await app.state.readiness.close()
            await app.state.watches.close()
            await runtime.close()

    app = FastAPI(
        title="embedmill",
        version=version("embedmill"),
        summary="OpenAI-compatible embeddings: one call for a search, one durable job for a corpus.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the scheme and host that we were asked by, not the caller's
    )
    app.state.runtime = runtime
    app.state.lifecycle = Lifecycle()
    app.state.budgets = Budgets(runtime.settings)
    app.state.readiness = Readiness.of(runtime)
    app.state.watches = JobWatches(runtime)
    app.state.lifecycle.on_stop.append(app.state.watches.stop)
    app.state.exposition = operations.shared_exposition(
        Gauges(runtime.database, worker_seen_s=runtime.settings.worker_seen_s)
    )
    app.router.route_class = GuardedRoute
    errors.install(app)
    for method, path, endpoint, documented in openapi.routes(embeddings, jobs, models, operations):
        if endpoint.__name__ not in PUBLIC or not runtime.settings.ops_port:
            app.add_api_route(
                path, endpoint, methods=[method], name=endpoint.__name__, response_model=None, **documented
            )
    openapi.install(app)
    docs.install(app)
    return app


def operations_app(app: FastAPI) -> Starlette:
    """What is for operators alone, for a port of its own: it shows the state of the app that it is given."""
    pages = (operations.healthz, operations.readyz, operations.metrics)
    ops = Starlette(routes=[Route(f"/{page.__name__}", page) for page in pages])
    ops.state = app.state
    errors.install(ops)
    return ops
