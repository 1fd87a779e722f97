"""A plain caller of the API under test: the standard library's client, so that nothing of ours measures itself."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson


class BenchError(Exception):
    """The thing under test answered what it should not: there is no figure to report."""


class Client:
    """One caller with one key."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        self._netloc = urlsplit(url).netloc

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}, *, expect: int = 200
    ) -> tuple[dict[str, str], bytes]:
        """Headers (lower-case) and body. Raises BenchError for another status."""
        connection = http.client.HTTPConnection(self._netloc, timeout=300)
        try:
            connection.request(method, path, body=body, headers={**self.headers, **headers})
            return self._read(connection, f"{method} {path}", expect)
        finally:
            connection.close()

    def json(self, method: str, path: str, document: object = None, *, expect: int = 200) -> Any:
        """Send and read JSON."""
        body = None if document is None else orjson.dumps(document)
        return orjson.loads(self.call(method, path, body, {"content-type": "application/json"}, expect=expect)[1])

    def upload(self, path: str, file: Path, headers: Mapping[str, str], *, expect: int = 202) -> Any:
        """POST a file as a chunked stream, as a caller does that does not know its length."""
        connection = http.client.HTTPConnection(self._netloc, timeout=300, blocksize=256 * 1024)
        try:
            with file.open("rb") as stream:
                connection.request(
                    "POST",
                    path,
                    body=stream,
                    headers={**self.headers, **headers, "transfer-encoding": "chunked"},
                    encode_chunked=True,
                )
                return orjson.loads(self._read(connection, f"POST {path}", expect)[1])
        finally:
            connection.close()

    def _read(self, connection: http.client.HTTPConnection, what: str, expect: int) -> tuple[dict[str, str], bytes]:
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != expect:
            raise BenchError(
                f"{what}: {answer.status} where {expect} was expected: {body[:2000].decode(errors='replace')}"
            )
        return {name.lower(): value for name, value in answer.getheaders()}, body
