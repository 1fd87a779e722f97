"""Signs a finished request with AWS Signature Version 4, as all services but S3 take it. The caller gives the time.

Sources: AWS "Signature Version 4 signing process", botocore 1.44 `auth.py`, 2026-11.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from providers.base import UpstreamRequest

_ALGORITHM = "AWS4-HMAC-SHA256"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OURS = ("authorization", "x-amz-date", "x-amz-security-token")


class CanonicalRequest(NamedTuple):
    """What the signature covers."""

    text: str
    signed_headers: str  # names, in order, with ";" between them


def signed(
    request: UpstreamRequest,
    *,
    access_key_id: str,
    secret_access_key: str,
    session_token: str | None = None,
    region: str,
    service: str,
    now_s: float,
) -> UpstreamRequest:
    """The request with `authorization`, `x-amz-date` and the session token. Its URL and body must be sent unchanged."""
    instant = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {name.lower(): value for name, value in request.headers.items() if name.lower() not in _OURS}
    headers["x-amz-date"] = instant
    if session_token:
        headers["x-amz-security-token"] = session_token
    canonical = canonical_request(replace(request, headers=headers))
    scope = f"{instant[:8]}/{region}/{service}/aws4_request"
    text = "\n".join((_ALGORITHM, instant, scope, hashlib.sha256(canonical.text.encode()).hexdigest()))
    key = f"AWS4{secret_access_key}".encode()
    for part in (instant[:8], region, service, "aws4_request"):
        key = _hmac(key, part)
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={access_key_id}/{scope}, SignedHeaders={canonical.signed_headers}, "
        f"Signature={_hmac(key, text).hex()}"
    )
    return replace(request, headers=headers)


def canonical_request(request: UpstreamRequest) -> CanonicalRequest:
    """Method, path, query, headers and body in the one form that both sides compute.

    Of the headers only `accept`, `content-type`, `host` and AWS's own are signed: a proxy may change the others.
    """
    url = urlsplit(request.url)
    headers = {"host": _host(url), **_signable(request.headers)}
    names = ";".join(sorted(headers))
    lines = (
        request.method,
        quote(url.path or "/", safe="/"),  # encoded in the URL already: AWS encodes it a second time
        "&".join(sorted(each if "=" in each else f"{each}=" for each in url.query.split("&") if each)),
        *(f"{name}:{headers[name]}" for name in sorted(headers)),
        "",
        names,
        hashlib.sha256(request.body).hexdigest(),
    )
    return CanonicalRequest("\n".join(lines), names)


def _signable(headers: Mapping[str, str]) -> dict[str, str]:
    lower = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    return {
        name: value
        for name, value in lower.items()
        if name in ("accept", "content-type", "host") or name.startswith("x-amz-")
    }


def _host(url: SplitResult) -> str:
    """The Host header as HTTP clients write it: without user and without the scheme's own port."""
    host = url.netloc.rpartition("@")[2].lower()
    return host.removesuffix(f":{_DEFAULT_PORTS.get(url.scheme, '')}")


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
