"""Request bodies, bounded: refused by Content-Length before a byte is read, or as soon as they run over."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request

from engine.corpus import Gunzip, Whole
from models.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType

TOO_LARGE = (
    "The body is larger than {limit} bytes. Stream a large corpus as application/x-ndjson to /v1/embeddings/jobs."
)


def decoding(request: Request) -> Gunzip | Whole:
    """The decoder for the body's Content-Encoding. Raises UnsupportedMediaType."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        return Gunzip()
    if encoding in ("", "identity"):
        return Whole()
    raise UnsupportedMediaType(
        f"Content-Encoding '{encoding[:40]}' is not supported: send gzip or none.", param="content-encoding"
    )


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


async def read(request: Request, limit: int) -> bytes:
    """The whole decoded body. Raises PayloadTooLarge once it is over the limit."""
    length = request.headers.get("content-length")
    if length is not None and (not length.isdigit() or int(length) > limit):
        raise PayloadTooLarge(TOO_LARGE.format(limit=limit))
    decoder = decoding(request)
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        for part in decoder.feed(chunk):
            size += len(part)
            if size > limit:
                raise PayloadTooLarge(TOO_LARGE.format(limit=limit))
            parts.append(part)
    decoder.finish()
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The raw body as it arrives, never held whole."""
    async for chunk in request.stream():
        if chunk:
            yield chunk


def integer(
    request: Request, name: str, *, default: int | None = None, low: int = 0, high: int | None = None
) -> int | None:
    """A whole-number query parameter. Raises InvalidInput that names it."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise InvalidInput(f"Invalid '{name}': expected a whole number.", param=name, code="invalid_value") from None
    if value < low or (high is not None and value > high):
        bounds = f"{low} to {high}" if high is not None else f"{low} or more"
        raise InvalidInput(f"Invalid '{name}': expected {bounds}.", param=name, code="invalid_value")
    return value


def only(request: Request, *names: str) -> None:
    """Raises InvalidInput for a query parameter that the route does not know."""
    for name in request.query_params:
        if name not in names:
            raise InvalidInput(f"Unknown parameter: '{name[:100]}'.", param=name[:100], code="unknown_parameter")
