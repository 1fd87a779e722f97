"""The one HTTP client: sends an `UpstreamRequest`, returns an `UpstreamReply`, bounded in time and in bytes.

It never repeats a POST, follows a redirect, reads a proxy from the environment or inflates a body: what to do about a
fault is the engine's decision, and a request sent twice is billed twice. A proxy is used where the request, or whoever
made the transport, names one: CONNECT for https, the absolute URL for http. The choice of client, and the measurements
behind it, are in docs/decisions/0001-upstream-transport.md.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from io import BytesIO

import aiohttp
from yarl import URL

from models.errors import (
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from providers.base import UpstreamReply, UpstreamRequest

# The library warns when a longer body is handed to it in one piece, and copies it in one go on the event loop.
_ONE_PIECE_BYTES = 1024 * 1024
# Connecting gets less than the whole deadline, so that a deadline that passes later surely passed after sending.
_CONNECTING_SHARE = 0.9


class HttpTransport:
    """Sends requests upstream over pooled connections; opens at the first call, and belongs to that event loop."""

    def __init__(self, *, connect_timeout_s: float = 5.0, idle_timeout_s: float = 15.0, proxy: str = "") -> None:
        """`proxy`: the URL of the HTTP proxy for requests that name none, with user and password where it has any."""
        self._connect_timeout_s = connect_timeout_s
        self._connecting = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s)
        self._proxy = proxy
        self._idle_timeout_s = idle_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def send(self, request: UpstreamRequest, *, timeout_s: float, max_reply_bytes: int) -> UpstreamReply:
        """Send once; return the whole reply, of any status, within `timeout_s`. Cancelling drops the connection."""
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = self._open()
        if timeout_s <= 0:
            raise UpstreamTimeout("no time was left to call the upstream", sent=False)
        connecting = self._connecting
        if timeout_s * _CONNECTING_SHARE < self._connect_timeout_s:
            connecting = aiohttp.ClientTimeout(total=None, connect=timeout_s * _CONNECTING_SHARE)
        body = request.body
        proxy = self._proxy if request.proxy is None else request.proxy
        try:
            async with (
                asyncio.timeout(timeout_s),
                session.request(
                    request.method,
                    _parsed_url(request.url),
                    headers=request.headers,
                    data=body if len(body) <= _ONE_PIECE_BYTES else BytesIO(body),
                    allow_redirects=False,
                    timeout=connecting,
                    proxy=proxy or None,
                    skip_auto_headers=request.without_headers or None,
                    ssl=True if request.ca_file is None else _trusting(request.ca_file),
                ) as response,
            ):
                return await _read(response, max_reply_bytes)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            translated = _translate_error(error)
        # Raised outside the handler so that no traceback carries the library's text, which quotes URLs and headers.
        raise translated

    async def close(self) -> None:
        """Drop every connection and fail the calls in flight; closing twice is harmless."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise UpstreamUnavailable("the upstream client is closed", sent=False)
        if self._session is not None:
            # Also after fork(): the child's loop is a new one, and the parent's connections are not its to use.
            raise RuntimeError(
                "a transport serves the event loop of its first call; this loop needs a transport of its own"
            )
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            # How many calls run at once is the limiter's decision: a limit here would make calls wait for a connection
            # within their time to connect, and providers would be blamed for it.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=self._idle_timeout_s),
            headers={"Accept-Encoding": "identity", "User-Agent": "embedmill"},
            skip_auto_headers=("Content-Type",),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self._session


@lru_cache(maxsize=256)
def _parsed_url(url: str) -> URL:
    return URL(url, encoded=True)  # quoting it again would break a signature made over the URL


@lru_cache(maxsize=32)
def _trusting(ca_file: str) -> ssl.SSLContext:
    """TLS with the certificates of this file alone."""
    return ssl.create_default_context(cafile=ca_file)


async def _read(response: aiohttp.ClientResponse, max_reply_bytes: int) -> UpstreamReply:
    announced_bytes = response.content_length
    if announced_bytes is not None and announced_bytes > max_reply_bytes:
        response.close()
        raise UpstreamProtocolError(f"the reply announces {announced_bytes} bytes; at most {max_reply_bytes} are read")
    chunks: list[bytes] = []
    read_bytes = 0
    while chunk := await response.content.readany():
        read_bytes += len(chunk)
        if read_bytes > max_reply_bytes:
            response.close()
            raise UpstreamProtocolError(f"the reply is longer than {max_reply_bytes} bytes")
        chunks.append(chunk)
    headers = {name.lower(): value for name, value in response.headers.items()}
    return UpstreamReply(response.status, headers, b"".join(chunks))


def _translate_error(error: Exception) -> UpstreamError:
    """Our error for one of the library. Order matters: its timeouts are OSErrors too."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamTimeout("the upstream could not be connected to in time", sent=False)
        case aiohttp.ClientProxyConnectionError():
            return UpstreamUnavailable(
                "the proxy before the upstream cannot be connected to",
                sent=False,
                advice="check the address of the account's proxy, or EMBEDMILL_UPSTREAM_PROXY",
            )
        case aiohttp.ClientHttpProxyError(status=407):
            return UpstreamMisconfigured(
                "the proxy refused its credential",
                status=407,
                sent=False,
                advice="check the user and password of the account's proxy, or of EMBEDMILL_UPSTREAM_PROXY",
            )
        case aiohttp.ClientHttpProxyError():
            return UpstreamUnavailable(
                "the proxy does not connect to the upstream",
                sent=False,
                advice="check that the proxy allows connections to the account's base_url",
            )
        case TimeoutError():
            return UpstreamTimeout("the upstream did not finish its reply in time", sent=True)
        case aiohttp.ClientConnectorError():
            return _connect_error(error)
        case aiohttp.ClientPayloadError():
            return UpstreamUnavailable("the upstream broke off its reply", sent=True)
        case aiohttp.ClientResponseError():
            return UpstreamProtocolError("the upstream's answer is not HTTP", sent=True)
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return UpstreamProtocolError("the request's URL cannot be sent to", sent=False)
        case aiohttp.ClientError() | OSError():
            return UpstreamUnavailable("the upstream closed the connection without an answer", sent=True)
        case _:
            return UpstreamProtocolError("the request's method, URL or a header is malformed", sent=False)


def _connect_error(error: aiohttp.ClientConnectorError) -> UpstreamError:
    match error:
        case aiohttp.ClientConnectorDNSError():
            return UpstreamUnavailable(
                "the host's name cannot be resolved",
                sent=False,
                advice="check the host in base_url of providers.{account}, and this machine's DNS",
            )
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError():
            return UpstreamUnavailable(
                "the upstream cannot be connected to: TLS failed, or its certificate is not trusted here",
                sent=False,
                advice="check https:// and the host in base_url of providers.{account}, and this machine's CAs",
            )
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return UpstreamUnavailable(
                "the upstream cannot be connected to: nothing listens there",
                sent=False,
                advice="check host and port in base_url of providers.{account}, and that the server runs",
            )
        case _:
            return UpstreamUnavailable("the upstream cannot be connected to", sent=False)
