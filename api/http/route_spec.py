"""One route of the API, as the lists of routes have it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response


class RouteSpec(NamedTuple):
    """One route; `options` are arguments of FastAPI's `add_api_route` that document it."""

    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    options: dict[str, Any]
    route_class: type[APIRoute] | None = None  # None: that of the app
