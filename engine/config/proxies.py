"""HTTP proxies of upstream calls, as operators name them. Environment variables of other programs are not read."""

from __future__ import annotations

from urllib.parse import urlsplit

from models.errors import ConfigError


def proxy_url(text: str, where: str) -> str:
    """The URL of an HTTP proxy, checked. Raises ConfigError, which never quotes it: it may hold a password."""
    problem = None
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        problem = "is not a URL"
    else:
        if parts.scheme not in ("http", "https"):
            problem = "must start with http:// or https:// (proxies of other kinds are not supported)"
        elif not parts.hostname or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
            problem = "must be of the form http://USER:PASSWORD@HOST:PORT"
    if problem:
        raise ConfigError(f"{where} {problem}", param=where)
    return text
