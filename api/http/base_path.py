"""Serves the API below a path that a reverse proxy leaves in front of ours, or has taken away already."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def with_base_path(app: ASGIApp, root_path: str) -> ASGIApp:
    """The app, whose Location headers begin with `root_path`; the app itself where that is empty.

    Requests are understood by `PathTable`, with the path in front and without it.
    """
    return _BasePath(app, root_path) if root_path else app


class _BasePath:
    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root = root_path.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_base(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, self._root + value if name == b"location" and value.startswith(b"/") else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        await self._app(scope, receive, send_with_base)
