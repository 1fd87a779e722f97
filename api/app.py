"""The app: routes by name, one guard, one error envelope, one runtime."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from api import embeddings, errors, jobs, models, openapi, operations
from api.envelope import RequestEnvelope
from api.guard import GuardedRoute
from engine import presence
from engine.allocator import tune_memory
from engine.gauges import Gauges
from engine.runtime import Runtime
from engine.settings import Settings
from engine.telemetry import LOOP_LAG_SECONDS, configure_logging

LAG_EVERY_S = 1.0


def create_app(runtime: Runtime | None = None) -> ASGIApp:
    """Build the app. Without a runtime it opens one from the environment; fakes enter by giving one."""
    if runtime is None:
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format)
        runtime = Runtime.open(settings)
    return RequestEnvelope(build(runtime))


def build(runtime: Runtime) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        duties = [
            asyncio.create_task(_watch_lag()),
            asyncio.create_task(
                presence.keep_sharing(runtime.database, runtime.upstream, runtime.settings.worker_seen_s)
            ),
        ]
        tune_memory()
        try:
            yield
        finally:
            for duty in duties:
                duty.cancel()
            await runtime.close()

    app = FastAPI(
        title="embedmill",
        version=version("embedmill"),
        summary="OpenAI-compatible embeddings: one call for a search, one durable job for a corpus.",
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.runtime = runtime
    app.state.gauges = Gauges(runtime.database, worker_seen_s=runtime.settings.worker_seen_s)
    app.router.route_class = GuardedRoute
    errors.install(app)
    for method, path, endpoint, documented in openapi.routes(embeddings, jobs, models, operations):
        app.add_api_route(path, endpoint, methods=[method], name=endpoint.__name__, response_model=None, **documented)
    openapi.install(app)
    return app


async def _watch_lag() -> None:
    while True:
        due = time.monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        LOOP_LAG_SECONDS.set(max(0.0, time.monotonic() - due))
