"""How the command line reads a server's answer: a typed object, or one readable error."""

from __future__ import annotations

from typing import TypeVar

import httpx
import msgspec

from cli.errors import CliError
from cli.job import ErrorEnvelope

T = TypeVar("T")


def checked(reply: httpx.Response) -> httpx.Response:
    """The reply, when it is a good one. Raises CliError with the server's own words and the request's id."""
    if reply.status_code < 400:
        return reply
    try:
        error = msgspec.json.decode(reply.content, type=ErrorEnvelope).error
        said, code = error.message, f" {error.code}" if error.code else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        said, code = reply.reason_phrase or "the server refused", ""
    where = f"HTTP {reply.status_code}{code}"
    if request_id := reply.headers.get("x-request-id"):
        where += f", {request_id}"
    fix = None
    if reply.status_code == 401:
        fix = "give a key with --api-key or EMBEDMILL_API_KEY; `embedmill keys create` makes one"
    raise CliError(f"{said} [{where}]", fix)


def decoded(reply: httpx.Response, type: type[T]) -> T:
    """The body of a good reply as `type`. Raises CliError when something else than embedmill answered."""
    try:
        return msgspec.json.decode(checked(reply).content, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{reply.url} did not answer as embedmill does: {error}", "is --url right?") from error
