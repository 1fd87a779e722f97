"""Sends one signed event to one receiver, at the address that was checked and at no other."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from time import time

import httpx

from engine.config.settings import Settings
from engine.webhooks.addresses import Address
from engine.webhooks.signature import sign
from engine.webhooks.targets import Target, TargetPolicy, TargetRefused

USER_AGENT = f"embedmill/{version('embedmill')}"
# Addresses of one name that are tried until one accepts the connection.
MAX_ADDRESSES = 3
CONNECT_TIMEOUT_S = 5.0
# An answer's body is read so far, out of politeness to the receiver, and dropped.
MAX_BODY_BYTES = 4096
BODY_TIMEOUT_S = 1.0
# Bounds of a receiver's Retry-After.
MAX_RETRY_AFTER_S = 86_400.0


@dataclass(frozen=True, slots=True)
class SendResult:
    """What became of one attempt: the receiver's status, or the reason why there is none."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None

    @property
    def is_delivered(self) -> bool:
        """True when the receiver has acknowledged the event: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


class WebhookSender:
    """Sends events. Belongs to one event loop once it is used. Close it. `tls`: by default, the public authorities."""

    def __init__(
        self, settings: Settings, *, policy: TargetPolicy | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.policy = policy or TargetPolicy(settings.webhook_allowed_networks)
        self._timeout_s = settings.webhook_timeout_s
        self._tls = tls
        self._client: httpx.AsyncClient | None = None

    async def send(self, url: str, secrets: Sequence[str], *, event_id: str, body: bytes) -> SendResult:
        """Send the event once. Every failure is a result; its text is ours and tells nothing of the answer's body."""
        timestamp = int(time())
        headers = {
            "content-type": "application/json",
            "user-agent": USER_AGENT,
            # A compressed answer could unpack to any size.
            "accept-encoding": "identity",
            "connection": "close",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secrets, event_id=event_id, timestamp=timestamp, body=body),
        }
        try:
            async with asyncio.timeout(self._timeout_s):
                target = await self.policy.resolve(self.policy.parse(url))
                return await self._post(target, headers, body)
        except TargetRefused as error:
            return SendResult(error=str(error).removesuffix("."))  # a part of a sentence, as the others
        except TimeoutError:
            return SendResult(error=f"the receiver did not answer within {self._timeout_s:g} s")
        except httpx.HTTPError as error:
            return SendResult(error=_explain(error))

    async def _post(self, target: Target, headers: dict[str, str], body: bytes) -> SendResult:
        *first, last = target.addresses[:MAX_ADDRESSES]
        for address in first:
            # Nothing has been sent then: a host may have an address of a kind that this machine does not reach.
            with contextlib.suppress(httpx.ConnectError, httpx.ConnectTimeout):
                return await self._post_to(address, target, headers, body)
        return await self._post_to(last, target, headers, body)

    async def _post_to(self, address: Address, target: Target, headers: dict[str, str], body: bytes) -> SendResult:
        request = self._open_client().stream(
            "POST",
            target.url.copy_with(host=str(address)),
            headers={"host": target.url.netloc.decode("ascii"), **headers},
            content=body,
            # The certificate must be that of the host, not of the address.
            extensions={"sni_hostname": target.host},
        )
        async with request as response:
            await _drop_body(response)
            error = None if response.is_success else f"the receiver answered {response.status_code}"
            return SendResult(response.status_code, error, _retry_after_s(response.headers))

    def _open_client(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                follow_redirects=False,
                verify=self._tls or True,
                trust_env=False,  # no proxy, no .netrc
                timeout=httpx.Timeout(self._timeout_s, connect=CONNECT_TIMEOUT_S),
                # A connection is never used twice: its certificate was checked for one host, and another host may have
                # the same address.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            )
        return self._client

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.aclose()


async def _drop_body(response: httpx.Response) -> None:
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in response.aiter_raw():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    return
    except (TimeoutError, httpx.HTTPError):
        return  # the status is there, and counts


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds or a date, which is read against the answer's own Date; None without a usable hint."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(seconds, MAX_RETRY_AFTER_S) if 0 < seconds <= math.inf else None


def _explain(error: httpx.HTTPError) -> str:
    """The failure in our words: those of a library may quote an address."""
    if isinstance(error, httpx.ConnectError):
        if "certificate" in str(error).lower() or "ssl" in str(error).lower():
            return "no TLS connection: the receiver's certificate is not valid for its host, or it does not speak TLS"
        return "the receiver refused the connection, or cannot be reached"
    if isinstance(error, httpx.ConnectTimeout):
        return "the receiver accepted no connection in time"
    if isinstance(error, httpx.TimeoutException):
        return "the receiver did not answer in time"
    return "the receiver closed the connection, or sent what is no HTTP answer"
