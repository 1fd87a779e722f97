"""The app's short way to its routes: errors are answered as FastAPI's own layers do."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import Request
from starlette.responses import Response

from api.http import errors
from api.http.application import HAS_BEGUN, Application
from models.errors import InvalidInput


class Sent(list[dict[str, Any]]):
    """What the app sends; the middleware's mark of a begun answer included."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope

    async def __call__(self, message: Any) -> None:
        self._scope[HAS_BEGUN] = True
        self.append(message)


async def ask(endpoint: Any, path: str = "/x", method: str = "GET") -> Sent:
    app = Application()
    errors.install(app)
    app.add_route("/x", endpoint)
    app.index_routes()
    scope: dict[str, Any] = {"type": "http", "path": path, "method": method, "headers": [], "query_string": b""}
    sent = Sent(scope)

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    try:
        await app(scope, receive, sent)
    except Exception as error:
        sent.append({"raised": error})
    return sent


async def test_an_error_of_ours_is_answered() -> None:
    async def endpoint(request: Request) -> Response:
        raise InvalidInput("no", param="p")

    sent = await ask(endpoint)
    assert sent[0]["status"] == 400 and b'"param":"p"' in sent[1]["body"] and len(sent) == 2


async def test_an_unexpected_error_is_answered_and_goes_on_to_the_server() -> None:
    async def endpoint(request: Request) -> Response:
        raise ZeroDivisionError

    sent = await ask(endpoint)
    assert sent[0]["status"] == 500 and b"internal_error" in sent[1]["body"]
    assert isinstance(sent[2]["raised"], ZeroDivisionError)


class BrokenAnswer(Response):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise self.error


@pytest.mark.parametrize("error", [InvalidInput("no"), ZeroDivisionError()])
async def test_after_the_answer_has_begun_an_error_is_the_servers(error: Exception) -> None:
    async def endpoint(request: Request) -> Response:
        return BrokenAnswer(error)

    sent = await ask(endpoint)
    assert [message.get("status") for message in sent] == [200, None] and sent[1]["raised"] is error


@pytest.mark.parametrize(("path", "method", "status"), [("/y", "GET", 404), ("/x", "PUT", 405)])
async def test_what_is_not_there_has_the_envelope(path: str, method: str, status: int) -> None:
    async def endpoint(request: Request) -> Response:
        return Response()

    sent = await ask(endpoint, path, method)
    assert sent[0]["status"] == status and sent[1]["body"].startswith(b'{"error":')


async def test_a_handler_that_breaks_is_an_unexpected_error() -> None:
    async def endpoint(request: Request) -> Response:
        raise InvalidInput("no", param=Unprintable())  # type: ignore[arg-type]

    sent = await ask(endpoint)
    assert sent[0]["status"] == 500 and b"internal_error" in sent[1]["body"] and len(sent) == 3
    assert not isinstance(sent[2]["raised"], InvalidInput)
    assert isinstance(sent[2]["raised"].__context__, InvalidInput)


class Unprintable:
    """A value that no answer can contain."""
