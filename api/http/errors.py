"""Maps every error to its HTTP status and OpenAI's envelope."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from engine.config.suggestions import did_you_mean
from engine.routing.outage_causes import cause_of
from models import errors, file_errors
from models.base import random_id
from models.errors import EmbedmillError

log = logging.getLogger("embedmill.api")

# The most specific class wins. A caller never sees an upstream's body, address or credential.
STATUS: dict[type[EmbedmillError], int] = {
    errors.RequestError: 400,
    errors.UnknownAlias: 404,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.RequestTimeout: 408,
    errors.UrlTooLong: 414,
    errors.HeadersTooLarge: 431,
    errors.ContentBlocked: 422,
    errors.IdempotencyMismatch: 422,
    errors.NotAuthenticated: 401,
    errors.NotPermitted: 403,
    errors.RateLimited: 429,
    errors.JobNotFound: 404,
    errors.GenerationNotFound: 404,
    errors.WebhookNotFound: 404,
    file_errors.FileNotFound: 404,
    file_errors.BatchNotFound: 404,
    file_errors.BatchOutputDeleted: 404,
    file_errors.RangeNotSatisfiable: 416,
    errors.Conflict: 409,
    errors.UpstreamError: 502,
    errors.UpstreamRateLimited: 429,
    errors.UpstreamTimeout: 504,
    errors.EmbeddingsUnsupported: 501,
    errors.NoRoute: 503,
    errors.CapacityError: 503,
    errors.DeadlineExceeded: 504,
    EmbedmillError: 500,
}
# OpenAI's envelope of these has `code: null`, which clients may compare.
WITHOUT_CODE = (file_errors.FileNotFound, file_errors.FileRefused, file_errors.BatchEnded)
CLIENT_GONE = 499  # never sent, because the client has gone; it appears in metrics and logs
LOG_INTERVAL_S = 60.0
MAX_RETRY_AFTER_S = 60  # above it, the official SDKs stop obeying Retry-After
SERVER_ERROR = (
    "The server had an error while processing your request. Try again; when that does not help, "
    "tell whoever runs it the x-request-id of this answer."
)
HTTP_ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


class UpstreamFailureLog:
    """One WARNING line a minute for each account and error code of failed sync requests; further ones are counted."""

    def __init__(self) -> None:
        self._logged_at: dict[tuple[str, str], float] = {}
        self._suppressed: Counter[tuple[str, str]] = Counter()

    def log(self, error: errors.UpstreamError | errors.RouteDown, request_id: str | None) -> None:
        """Log the failure, or count it when its account and code were logged within LOG_INTERVAL_S."""
        account = error.account if isinstance(error, errors.UpstreamError) else error.message
        key = (account, error.code)
        now = time.monotonic()
        if now - self._logged_at.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            self._suppressed[key] += 1
            return
        self._logged_at[key] = now
        extra: dict[str, Any] = {"request_id": request_id, "code": error.code, "count": self._suppressed.pop(key, 0)}
        if isinstance(error, errors.UpstreamError):
            cause = cause_of(error.account, error)
            extra |= {"provider": error.account, "status": error.status, "advice": cause.advice}
        log.warning("a sync request failed upstream: %s", error.message, extra=extra)


UPSTREAM_FAILURES = UpstreamFailureLog()


class ErrorFacts(NamedTuple):
    """What an error response says, whatever its format."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None


ErrorBody = Callable[[ErrorFacts], Any]
"""Makes the JSON value of an error response in one format."""


def openai_body(facts: ErrorFacts) -> dict[str, Any]:
    """OpenAI's envelope, always with all four keys."""
    kind = "invalid_request_error" if facts.status < 500 else "server_error"
    if facts.status == 429:
        kind = "requests"
    return {"error": {"message": facts.message, "type": kind, "param": facts.param, "code": facts.code}}


def body_of(request: Request) -> ErrorBody:
    """The format of the request's route."""
    body: ErrorBody = getattr(request.scope.get("route"), "error_body", openai_body)
    return body


def _response(facts: ErrorFacts, body: ErrorBody) -> Response:
    return Response(orjson.dumps(body(facts)), status_code=facts.status, media_type="application/json")


def status_of(error: EmbedmillError) -> int:
    """The HTTP status of an error, by its most specific class in STATUS."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def render(error: EmbedmillError, body: ErrorBody = openai_body) -> Response:
    """Our own error as a response."""
    status = status_of(error)
    code = None if isinstance(error, WITHOUT_CODE) else error.code
    if status == 502 and not isinstance(error, errors.UpstreamProtocolError):
        code = "upstream_error"
    message = error.message
    if isinstance(error, errors.UpstreamError) and error.account and status >= 500:
        message = cause_of(error.account, error).sentence()
    retry_after_s: int | None = None
    if status in (429, 503):
        seconds = error.retry_after_s if error.retry_after_s is not None else 1.0
        retry_after_s = min(max(math.ceil(seconds), 1), MAX_RETRY_AFTER_S)
    response = _response(ErrorFacts(status, message, error.param, code, retry_after_s), body)
    if retry_after_s is not None:
        response.headers["retry-after"] = str(retry_after_s)
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(error, file_errors.RangeNotSatisfiable):
        response.headers["content-range"] = f"bytes */{error.size}"
    if isinstance(error, errors.Conflict):
        response.headers["x-should-retry"] = "true" if error.should_retry else "false"
    return response


def raw_response(error: EmbedmillError) -> bytes:
    """Our own error as a whole HTTP answer, for a connection that is closed before any application sees a request."""
    response = render(error)
    phrase = HTTPStatus(response.status_code).phrase
    lines = [f"HTTP/1.1 {response.status_code} {phrase}\r\n".encode()]
    lines += [b"%b: %b\r\n" % pair for pair in response.raw_headers]
    lines += [b"x-request-id: %b\r\n" % random_id("req").encode(), b"connection: close\r\n\r\n", bytes(response.body)]
    return b"".join(lines)


def _near_paths(request: Request) -> str:
    paths = (getattr(route, "path", "") for route in request.app.routes)
    return (
        did_you_mean(request.scope["path"], filter(None, paths))
        or " This server makes embeddings: POST /v1/embeddings."
    )


def _methods_of(request: Request) -> list[str]:
    """The methods of all routes that have this path: the framework's error knows those of one route alone."""
    path = request.scope["path"]
    found = (route for route in request.app.routes if isinstance(route, Route) and route.path_regex.match(path))
    return sorted({method for route in found for method in route.methods or ()})


def install(app: Starlette) -> None:
    """Give every error of the app, the framework's own too, the envelope of its route."""

    async def on_embedmill_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, EmbedmillError)
        request.scope["error"] = (error.code, error.param)
        if status_of(error) == 500:
            log.error("a request failed: %s", error.message, extra={"code": error.code})
        if isinstance(error, errors.UpstreamError | errors.RouteDown):
            UPSTREAM_FAILURES.log(error, request.scope.get("request_id"))
        return render(error, body_of(request))

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = request.scope["path"]  # not `request.url`, which is made of the Host header too
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_of(request)) or headers.get("Allow", "GET")
        messages = {
            404: f"Unknown request URL: {request.method} {path}.{_near_paths(request)} See /docs for what there is.",
            405: f"Not allowed to {request.method} on {path}. Use {headers.get('Allow')}.",
        }
        message = messages.get(error.status_code, str(error.detail))
        code = HTTP_ERROR_CODES.get(error.status_code, "http_error")
        request.scope["error"] = (code, None)
        response = _response(ErrorFacts(error.status_code, message, code=code), body_of(request))
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def on_disconnect(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def on_validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        fault: dict[str, Any] = error.errors()[0]
        param = ".".join(str(part) for part in fault["loc"] if part not in ("query", "body", "path", "header"))
        request.scope["error"] = ("invalid_value", param)
        facts = ErrorFacts(400, f"Invalid '{param}': {fault['msg']}.", param or None, "invalid_value")
        return _response(facts, body_of(request))

    async def on_unexpected_error(request: Request, error: Exception) -> Response:
        request.scope["error"] = ("internal_error", None)
        log.error("unexpected error", exc_info=error, extra={"request_id": request.scope.get("request_id")})
        return _response(ErrorFacts(500, SERVER_ERROR, code="internal_error"), body_of(request))

    app.add_exception_handler(EmbedmillError, on_embedmill_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(Exception, on_unexpected_error)
