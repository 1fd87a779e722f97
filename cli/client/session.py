"""A session with one server: requests that wait politely, and fail in one readable line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpx

from cli.client.credentials import is_loopback, resolve_server
from cli.client.responses import raise_for_error
from cli.client.retry import RetryPolicy, is_busy
from cli.data_dir import DataDir
from cli.error_messages import connection_reason
from cli.errors import CliError, Failure

LONG_POLL_S = 20
TIMEOUT = httpx.Timeout(connect=5.0, read=LONG_POLL_S + 40.0, write=60.0, pool=5.0)


class Session:
    """The connection to one server. Requests that may be repeated are, while it is busy or away."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.is_local = is_loopback(self.url)
        self.retry = retry or RetryPolicy()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=TIMEOUT,
            transport=transport,
            trust_env=not self.is_local,  # a proxy of the environment cannot reach this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(
        self, path: str, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """A good answer, after as many tries as the policy allows. Raises CliError."""

        def send() -> httpx.Response:
            return self._http.get(path, params=without_none(query or {}), headers=headers)

        return self.send_with_retries(send)

    def once(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """The answer of a request that is sent a single time. Raises CliError."""
        try:
            return raise_for_error(self._http.request(method, path, json=body))
        except httpx.TransportError as error:
            raise self.unreachable(error) from error

    def post(self, path: str, **request: Any) -> httpx.Response:
        """Whatever a POST is answered, errors too, sent a single time. Raises httpx.TransportError."""
        return self._http.post(path, **request)

    @contextmanager
    def stream(
        self, path: str, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """The answer of one GET, whose body has not been read, unless it is an error."""
        with self._http.stream("GET", path, params=without_none(query or {}), headers=headers) as reply:
            if reply.is_error:
                reply.read()
            yield reply

    def send_with_retries(
        self,
        send: Callable[[], httpx.Response],
        busy: Callable[[httpx.Response], bool] = is_busy,
        failures_allowed: int | None = None,
    ) -> httpx.Response:
        """The good answer of `send`, which is called as often as the policy allows. Raises CliError."""
        try:
            return raise_for_error(self.retry.send_until_answered(send, busy, failures_allowed))
        except httpx.TransportError as error:
            raise self.unreachable(error) from error

    def fetch_page(self, url: str) -> tuple[int, bytes]:
        """Status and body of a page that needs no key, requested once and without the key."""
        reply = self._http.get(url, timeout=5.0, headers={"authorization": ""})
        return reply.status_code, reply.content

    def unreachable(self, error: httpx.TransportError) -> CliError:
        """The error for a server that did not answer."""
        reason, fix = connection_reason(error)
        if isinstance(error, httpx.ConnectError):
            fix += "; `embedmill up` starts a server, --url names another"
        return CliError(f"no answer from {self.url}: {reason}", fix, failure=Failure.SERVER)


def server_address(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Address and key from the command's options, which hold the shell's environment, else from the data directory."""
    return resolve_server(url, api_key, DataDir.from_environment())


def waits_for_key(reply: httpx.Response) -> bool:
    """True for an answer that asks to come back, also because an earlier try under the key is still being read."""
    waits = reply.status_code == 409 and reply.headers.get("x-should-retry") != "false"
    return waits or is_busy(reply)


def without_none(query: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that have a value."""
    return {name: value for name, value in query.items() if value is not None}
