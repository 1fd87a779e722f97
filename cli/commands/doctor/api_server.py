"""The doctor's check of the API: does it answer, is it ready, does it take the key."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import httpx

from cli.client.api_client import Client
from cli.client.credentials import resolve_server
from cli.client.retry import RetryPolicy
from cli.commands.doctor.finding import Finding
from cli.data_dir import DataDir
from cli.error_messages import connection_reason
from cli.errors import CliError
from engine.config.settings import Settings


def server(url: str | None, api_key: str | None, data_dir: DataDir, settings: Settings | None = None) -> Finding:
    """Whether the API answers, is ready and takes the key."""
    if url is None and data_dir.url() is None:
        return Finding("api", "warn", "no server is known here", "start one with `embedmill up`, or give --url")
    try:
        address, key = resolve_server(url, api_key, data_dir)
        with Client(address, key, retry=RetryPolicy(max_wait_s=0.0)) as client:
            if (finding := unready(address, settings, client.fetch_page)) is not None:
                return finding
            models = len(client.models()) if key else None
    except httpx.TransportError as error:
        reason, fix = connection_reason(error)
        return Finding("api", "fail", f"{url or data_dir.url()}: {reason}", f"{fix}; `embedmill up` starts one")
    except CliError as error:
        return Finding("api", "fail", str(error))
    models_note = f"; models for this key: {models}" if models is not None else ""
    return Finding("api", "ok", f"{address} is ready{models_note}")


def operations_url(address: str, settings: Settings | None) -> str:
    """The base URL of /readyz: EMBEDMILL_OPS_PORT of the same host, when that is set."""
    if settings is None or not settings.ops_port:
        return address
    parts = urlsplit(address)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit(("http", f"{host}:{settings.ops_port}", "", "", ""))


def unready(address: str, settings: Settings | None, fetch: Callable[[str], tuple[int, bytes]]) -> Finding | None:
    """The finding when /readyz is not 200; None when the API is ready. Raises httpx.TransportError without an answer.

    With a port for operators the API's own has no /readyz: both ways of a wrong setting are told apart.
    """
    readyz_base = operations_url(address, settings)
    has_port = settings is not None and settings.ops_port
    try:
        status, body = fetch(f"{readyz_base}/readyz")
    except httpx.TransportError as error:
        if not has_port:
            raise
        reason, _ = connection_reason(error)
        fix = "was the API started with the same EMBEDMILL_OPS_PORT? unset it here where it has none"
        return Finding("api", "fail", f"{readyz_base}/readyz (EMBEDMILL_OPS_PORT): {reason}", fix)
    if status == 200:
        return None
    body_text = body.decode("utf-8", "replace")[:300]
    if status == 404 and not has_port:
        fix = "where the API serves it on a port of its own, set the same EMBEDMILL_OPS_PORT here"
        return Finding("api", "fail", f"{readyz_base}/readyz: HTTP 404", fix)
    return Finding("api", "fail", f"{readyz_base}/readyz: HTTP {status} {body_text}", "the part not ok says why")
