"""Text without secrets, to be printed."""

from __future__ import annotations

import re
from urllib.parse import urlsplit


def redact_url(url: str) -> str:
    """The URL without its password, to be printed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no URL)"
    if "://" not in url and "@" in url:
        return f"…@{url.rpartition('@')[2]}"
    if parts.password is None:
        return url
    return parts._replace(netloc=f"{parts.username or ''}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def redact_keys(message: str) -> str:
    """The message without anything that looks like a key: libraries quote headers."""
    return re.sub(r"(?i)\b(em_[0-9a-z]+_|bearer )(?:<[^\s<>]+>|[^\s'\"]*[^\s'\"`)\]}>,;.:!?])", r"\1…", message)
