"""Decodes the server's replies into typed objects, and its errors into CliError."""

from __future__ import annotations

import re
from typing import TypeVar

import httpx
import msgspec

from cli.client.types import ErrorBody, ErrorEnvelope
from cli.errors import CliError, Failure

T = TypeVar("T")

NOT_FOUND_CODES = {"model_not_found": Failure.NOT_FOUND, "job_not_found": Failure.GONE}
# Fields of our requests that are options of a command, and the codes that say that a value of them cannot be.
COMMAND_LINE_FIELDS = frozenset(
    {"model", "dimensions", "input_type", "truncate", "max_cost_usd", "limit", "status", "state"}
    | {"purpose", "expires_after", "completion_window", "metadata", "url", "name", "event_type", "event_types"}
)
VALUE_ERROR_CODES = frozenset(
    {"invalid_value", "invalid_type", "unsupported_parameter", "unknown_parameter", "invalid_webhook_url"}
)


class ServerRefusal(CliError):
    """The server answered with an error. `error_code`: the code in it, where it has one."""

    def __init__(self, message: str, fix: str | None, *, failure: Failure, error_code: str | None) -> None:
        super().__init__(message, fix, failure=failure)
        self.error_code = error_code


def raise_for_error(reply: httpx.Response) -> httpx.Response:
    """The reply, unless it is an error. Raises ServerRefusal with the server's message and the request id."""
    if reply.status_code < 400:
        if reply.has_redirect_location:  # never followed: the key would go along
            target = reply.headers["location"].partition("?")[0]
            raise CliError(f"{_server(reply)} sends to {target!r:.200}", "give the address it is really at with --url")
        return reply
    try:
        error = msgspec.json.decode(reply.content, type=ErrorEnvelope).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise foreign_server_error(reply) from None
    answer, code = error.message, f" {error.code}" if error.code else ""
    where = f"HTTP {reply.status_code}{code}"
    if request_id := reply.headers.get("x-request-id"):
        where += f", {request_id}"
    fix = None
    if reply.status_code == 401:
        fix = "give a key with --api-key or EMBEDMILL_API_KEY; `embedmill keys create` makes one"
    raise ServerRefusal(f"{answer} [{where}]", fix, failure=_failure(error), error_code=error.code)


def _failure(error: ErrorBody) -> Failure:
    """A name or a value of the command line that the server refuses is one that we might have refused ourselves."""
    if error.code in NOT_FOUND_CODES:
        return NOT_FOUND_CODES[error.code]
    field = re.split(r"[.\[]", error.param or "")[0]  # of `metadata.team` it is metadata
    is_value = field in COMMAND_LINE_FIELDS and error.code in VALUE_ERROR_CODES
    return Failure.COMMAND_LINE if is_value else Failure.SERVER


def decode(reply: httpx.Response, type: type[T]) -> T:
    """The body of a good reply as `type`. Raises CliError when something else than embedmill answered."""
    try:
        return msgspec.json.decode(raise_for_error(reply).content, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise foreign_server_error(reply) from error


def foreign_server_error(reply: httpx.Response) -> CliError:
    """The error for an answer that embedmill does not give: another program, or a proxy before it."""
    start = reply.content.lstrip()[:64].lower()
    kind = (
        "HTML"
        if start.startswith(b"<")
        else "JSON of another kind"
        if start.startswith((b"{", b"["))
        else "something else"
    )
    name = "".join(filter(str.isprintable, reply.headers.get("server", "")))[:40]
    answer = f"HTTP {reply.status_code} and {kind}" if start else f"HTTP {reply.status_code} and nothing"
    if reply.status_code in (502, 503, 504):
        return CliError(f"a proxy at {_server(reply)} answered {answer}", "is the embedmill server behind it up?")
    return CliError(
        f"{_server(reply)} did not answer as embedmill does: {name or 'it'} answered {answer}",
        "is --url right? another program answers there",
    )


def _server(reply: httpx.Response) -> str:
    url = reply.request.url
    return f"{url.scheme}://{url.netloc.decode('ascii', 'replace').rpartition('@')[2]}"
