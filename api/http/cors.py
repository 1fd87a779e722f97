"""Lets web pages of other origins call the API (CORS): off unless the operator names origins.

A page sends the key in a header of its own, so no credentials of the browser are ever allowed: no cookie means anything
here. A preflight has no key, and is answered without one; it tells nothing but what this setting says.
"""

from __future__ import annotations

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from api.http.errors import render
from models.errors import NotPermitted

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# What scripts of a page may read beside the few headers that browsers always show.
EXPOSED = (
    "x-request-id", "x-embedmill-provider", "x-embedmill-space", "x-embedmill-complete", "x-embedmill-input-type",
    "x-ratelimit-limit-requests", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-should-retry",
    "retry-after", "etag", "location", "idempotent-replayed", "content-disposition", "content-range", "accept-ranges",
    "www-authenticate",
)  # fmt: skip
MAX_AGE_S = 600
REFUSED = "A page of this origin may not make this call: whoever runs this server adds it to EMBEDMILL_CORS_ORIGINS."


def with_cors(app: ASGIApp, origins: list[str]) -> ASGIApp:
    """The app, open to pages of these origins; the app itself where there are none."""
    return _Cors(app, origins) if origins else app


class _Cors(CORSMiddleware):
    """Starlette's, with its refusals in our envelope."""

    def __init__(self, app: ASGIApp, origins: list[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_credentials=False,
            expose_headers=EXPOSED,
            max_age=MAX_AGE_S,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to OPTIONS with Origin and Access-Control-Request-Method."""
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=_without_body(response))
        refusal = render(NotPermitted(REFUSED, code="cors_refused"))
        refusal.headers["vary"] = response.headers["vary"]
        return refusal


def _without_body(response: Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if not name.startswith("content-")}
