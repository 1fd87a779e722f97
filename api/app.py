"""The ASGI app: routes, authentication, error responses, and the background tasks of one runtime."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from importlib.metadata import version
from types import SimpleNamespace
from typing import cast

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.routing import Route
from starlette.types import ASGIApp

from api import health
from api.http import docs_page, errors, openapi
from api.http.application import Application
from api.http.auth import PUBLIC, GuardedRoute
from api.http.base_path import with_base_path
from api.http.concurrency_limits import Budgets
from api.http.connection_table import parse_networks
from api.http.cors import with_cors
from api.http.lifecycle import Lifecycle
from api.http.middleware import RequestContext
from api.loop_lag import watch_lag
from api.readiness import Readiness
from api.routes import all_routes
from engine.config.secrets import REFRESH_EVERY_S
from engine.config.settings import WORKER_SEEN_S, Settings
from engine.jobs.composition import dispatcher_of
from engine.jobs.execution.outage_waits import try_changed_secrets
from engine.jobs.reading.long_poll import JobWatches
from engine.observability.telemetry import configure_logging
from engine.planning import tokens
from engine.process.allocator_tuning import tune_memory
from engine.process.background import ErrorLog, repeat
from engine.queue import process_heartbeats, worker_heartbeats
from engine.runtime import Runtime
from engine.storage.database_gauges import Gauges
from engine.webhooks.sample_events import SampleEvents
from engine.webhooks.sender import WebhookSender

STOP_TIMEOUT_S = 2.0


def create_app(runtime: Runtime | None = None) -> ASGIApp:
    """The ASGI app with its middleware. Without `runtime` it opens one from the environment; tests pass their own."""
    if runtime is None:
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format, service="api")
        runtime = Runtime.open(settings)
    return with_edge(build_app(runtime))


def with_edge(app: Application) -> ASGIApp:
    """The app with the middleware that its settings call for."""
    settings: Settings = app.state.runtime.settings
    return RequestContext(with_cors(with_base_path(app, settings.root_path), settings.origins))


def build_app(runtime: Runtime) -> Application:
    """The FastAPI app of a runtime, without the middleware around it. Its lifespan closes the runtime."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        secrets, outages = runtime.upstream.secrets, runtime.router.outages
        refresh = partial(try_changed_secrets, secrets, outages, dispatcher_of(runtime))
        tasks = [
            asyncio.create_task(watch_lag()),
            asyncio.create_task(app.state.readiness.keep_fresh()),
            asyncio.create_task(process_heartbeats.heartbeat_loop(runtime.database, "api")),
            asyncio.create_task(repeat(refresh, ErrorLog("reading secret files"), every_s=REFRESH_EVERY_S)),
            asyncio.create_task(worker_heartbeats.quota_share_loop(runtime.database, runtime.limiters, WORKER_SEEN_S)),
        ]
        tune_memory()
        await asyncio.to_thread(tokens.load)
        runtime.usage.start()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT_S)  # the heartbeat signs off
            await app.state.readiness.close()
            await app.state.watches.close()
            await app.state.webhooks.close()
            await runtime.close()

    app = Application(
        title="embedmill",
        version=version("embedmill"),
        summary="OpenAI-compatible embeddings: one call for a search, one durable job for a corpus.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name the scheme and host that we were asked by, not the caller's
        # Requests are counted and timed in middleware.py.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state = cast("State", SimpleNamespace())  # read several times a request: Starlette's own calls a function
    app.state.runtime = runtime
    app.state.lifecycle = Lifecycle()
    app.state.budgets = Budgets(runtime.settings)
    app.state.trusted_proxies = parse_networks(runtime.settings.trusted_proxies)
    app.state.readiness = Readiness.of(runtime)
    app.state.watches = JobWatches(runtime.store)
    app.state.lifecycle.on_stop.append(app.state.watches.stop)
    app.state.webhooks = sender = WebhookSender(runtime.settings)
    app.state.sample_events = SampleEvents(sender)
    app.state.exposition = health.shared_metrics_text(Gauges(runtime.database, worker_seen_s=WORKER_SEEN_S))
    app.router.route_class = GuardedRoute
    errors.install(app)
    for route in all_routes():
        name = route.endpoint.__name__
        if name not in PUBLIC or not runtime.settings.ops_port:
            app.router.add_api_route(
                route.path,
                route.endpoint,
                methods=[route.method],
                name=name,
                response_model=None,
                route_class_override=route.route_class,
                **route.options,
            )
    openapi.install(app, root_path=runtime.settings.root_path)
    docs_page.install(app, root_path=runtime.settings.root_path)
    app.index_routes(root_path=runtime.settings.root_path)
    return app


def operations_app(app: FastAPI) -> Starlette:
    """The operators' pages for a port of their own. They show the state of `app`."""
    pages = (health.healthz, health.readyz, health.metrics, health.health, health.ping, health.version)
    ops = Starlette(routes=[Route(f"/{page.__name__}", page) for page in pages])
    ops.state = app.state
    errors.install(ops)
    return ops
