"""Decompresses replies that are compressed although the request did not allow it: gzip and deflate, bounded in size."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from models.errors import UpstreamProtocolError

_GZIP_START = b"\x1f\x8b"
_PIECE_BYTES = 256 * 1024
_MAX_LAYERS = 3


def is_compressed(headers: Mapping[str, str], body: bytes) -> bool:
    """True where the body must be decompressed. Some proxies compress without a header."""
    if body.startswith(_GZIP_START):
        return True
    return "content-encoding" in headers and any(name != "identity" for name in _names(headers))


def inflated(headers: Mapping[str, str], body: bytes, *, max_bytes: int) -> bytes:
    """The body without its compression. Raises UpstreamProtocolError when it is broken, or longer than `max_bytes`.

    A body that is not compressed as its header says is returned unchanged: some proxies decompress and keep the header.
    """
    layers = [name for name in _names(headers) if name != "identity"] or ["gzip"]
    if len(layers) > _MAX_LAYERS:
        raise UpstreamProtocolError(f"the reply is compressed {len(layers)} times; at most {_MAX_LAYERS} are read")
    for name in reversed(layers):
        if name in ("gzip", "x-gzip"):
            if body.startswith(_GZIP_START):
                body = _decompressed(body, 16 + zlib.MAX_WBITS, max_bytes)
        elif name == "deflate":
            if body[:1] not in (b"{", b"["):
                # The name means zlib's format; some servers leave its two bytes of header out (RFC 9110 §8.4.1.2).
                bare = len(body) < 2 or (body[0] & 15) != 8 or (body[0] * 256 + body[1]) % 31
                body = _decompressed(body, -zlib.MAX_WBITS if bare else zlib.MAX_WBITS, max_bytes)
        elif body[:1] not in (b"{", b"["):
            raise UpstreamProtocolError(
                f"the reply is compressed as {name[:20]!a}, which is not read",
                route_fault=True,
                advice="let the server, or the proxy before it, send its replies uncompressed or as gzip",
            )
    return body


def _decompressed(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    length = 0
    rest = body
    try:
        while rest:  # a gzip file may have several members
            stream = zlib.decompressobj(window_bits)
            while not stream.eof:
                piece = stream.decompress(rest, _PIECE_BYTES)
                rest = stream.unconsumed_tail
                length += len(piece)
                if length > max_bytes:
                    raise UpstreamProtocolError(f"the reply becomes longer than {max_bytes} bytes when it is inflated")
                pieces.append(piece)
                if not piece and not rest and not stream.eof:
                    raise UpstreamProtocolError("the compressed reply is cut off")
            rest = stream.unused_data if window_bits > zlib.MAX_WBITS else b""
            if rest and not rest.startswith(_GZIP_START):
                break  # padding after the last member
    except zlib.error:
        raise UpstreamProtocolError("the compressed reply is damaged") from None
    return b"".join(pieces)


def _names(headers: Mapping[str, str]) -> list[str]:
    text = headers.get("content-encoding", "")
    return [name.strip().lower() for name in text.split(",") if name.strip()]
