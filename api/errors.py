"""The only file with HTTP status codes of ours: every error becomes OpenAI's envelope here."""

from __future__ import annotations

import logging
import math
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from models import errors
from models.errors import EmbedmillError

log = logging.getLogger("embedmill.api")

# The most specific class wins. A caller is never told an upstream's body, address or credential.
STATUS: dict[type[EmbedmillError], int] = {
    errors.RequestError: 400,
    errors.UnknownAlias: 404,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.ContentBlocked: 422,
    errors.IdempotencyMismatch: 422,
    errors.NotAuthenticated: 401,
    errors.NotPermitted: 403,
    errors.JobNotFound: 404,
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
CLIENT_GONE = 499  # never sent: nobody is there to read it; it stands in metrics and logs
RETRY_CEILING_S = 60  # above it, the official SDKs stop obeying Retry-After
OF_HTTP = {401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def envelope(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Response:
    """An error as OpenAI words it: all four keys, always."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    if status == 429:
        kind = "requests"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def status_of(error: EmbedmillError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def render(error: EmbedmillError) -> Response:
    """Our own error as a response."""
    status = status_of(error)
    code = error.code
    if status == 502 and not isinstance(error, errors.UpstreamProtocolError):
        code = "upstream_error"
    response = envelope(status, error.message, param=error.param, code=code)
    if status in (429, 503):
        seconds = error.retry_after_s if error.retry_after_s is not None else 1.0
        response.headers["retry-after"] = str(min(max(math.ceil(seconds), 1), RETRY_CEILING_S))
    if status == 401:
        response.headers["www-authenticate"] = "Bearer"
    if isinstance(error, errors.Conflict):
        response.headers["x-should-retry"] = "true" if error.should_retry else "false"
    return response


def install(app: FastAPI) -> None:
    """Give every error of the app, the framework's own too, the one envelope."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, EmbedmillError)
        return render(error)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {
            404: f"Unknown request URL: {request.method} {request.url.path}. See /docs for what there is.",
            405: f"Not allowed to {request.method} on {request.url.path}.",
        }
        message = words.get(error.status_code, str(error.detail))
        response = envelope(error.status_code, message, code=OF_HTTP.get(error.status_code, "http_error"))
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    async def hung_up(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def of_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first: dict[str, Any] = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path", "header"))
        return envelope(400, f"Invalid '{param}': {first['msg']}.", param=param or None, code="invalid_value")

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error, extra={"request_id": request.scope.get("request_id")})
        return envelope(500, "The server had an error while processing your request.", code="internal_error")

    app.add_exception_handler(EmbedmillError, ours)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(ClientDisconnect, hung_up)
    app.add_exception_handler(RequestValidationError, of_validation)
    app.add_exception_handler(Exception, unexpected)
