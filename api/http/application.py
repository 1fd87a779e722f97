"""The FastAPI app, with a short way to its routes: every request passes here.

FastAPI puts seven layers around a route: telemetry, body limits, stacks of files to close, and two of error handling.
Our endpoints read and write the ASGI messages themselves, and need the errors only.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from api.http.auth import GuardedRoute
from api.http.paths import PathTable
from engine.process.background import surviving

# In the scope once the answer has begun: an error can then no longer be told to the client.
HAS_BEGUN = "embedmill.has_begun"


class Application(FastAPI):
    """Finds the route of a request, and answers with the handler of whatever it raises."""

    _fixed_routes: dict[tuple[str, str], GuardedRoute]
    _paths: PathTable

    def index_routes(self, *, root_path: str = "") -> None:
        """Call it when all routes have been added: those whose path has no parameters are then found at once.

        `root_path`: what a proxy leaves in front of our paths.
        """
        self._fixed_routes = {}
        paths = [route for route in self.routes if isinstance(route, Route)]
        self._paths = PathTable(
            (route.path for route in paths if not route.param_convertors),
            (route.path_regex for route in paths if route.param_convertors),
            root_path=root_path,
        )
        for route in self.routes:
            if isinstance(route, GuardedRoute) and not route.param_convertors:
                for method in route.methods or ():
                    self._fixed_routes.setdefault((route.path, method), route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        try:
            route = self._fixed_routes.get((scope["path"], scope["method"]))
            if route is None:
                path = scope["path"] = self._paths.canonical(scope["path"])
                route = self._fixed_routes.get((path, scope["method"]))
            if route is None:
                await self.router.app(scope, receive, send)
            else:
                scope["route"], scope["path_params"] = route, {}
                await route.app(scope, receive, send)
        except Exception as error:  # the edge: a client gets an answer whatever a request meets
            await self._answer_error(error, scope, receive, send)

    async def _answer_error(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the error's handler. Raises what nobody expected, once that is answered too."""
        request = Request(scope, receive, send)
        handlers: dict[Any, Any] = self.exception_handlers
        kind = next(kind for kind in type(error).__mro__ if kind in handlers)
        unexpected: Exception = error
        if kind is not Exception and not scope.get(HAS_BEGUN):
            with surviving() as answer:
                response = await handlers[kind](request, error)
                await response(scope, receive, send)
            if answer.error is None:
                return
            unexpected = answer.error
        response = await handlers[Exception](request, unexpected)
        if not scope.get(HAS_BEGUN):
            await response(scope, receive, send)
        raise unexpected
