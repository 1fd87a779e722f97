"""Objects in an S3-compatible store. An object is a run of segments, each of which one PUT stores or does not.

S3's own uploads in parts are not used: what a killed process leaves of one is in no listing, and is paid for until a
rule of the bucket removes it (docs/decisions/0027-object-store.md). Here all that is left has a key below the object's,
so `delete` finds it. The last segment has a name of its own: without it an object is not there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from models.base import random_id
from models.errors import ConfigError, ObjectMissing, ObjectsUnavailable

if TYPE_CHECKING:
    from obstore.store import S3Store

SEGMENT_BYTES = 4 * 1024 * 1024
PIECE_BYTES = 1024 * 1024
LAST = "-last"
REQUEST_TIMEOUT = timedelta(seconds=60)
CONNECT_TIMEOUT = timedelta(seconds=5)
RETRY_TIMEOUT = timedelta(seconds=20)
MAX_RETRIES = 4
PARAMETERS = ("endpoint", "region", "addressing")
ADDRESSINGS = ("path", "virtual")
# What S3 says of itself in the reply that the client's error quotes.
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_RIGHTS = "the credentials in AWS_… need the rights to list, read, write and delete there"
ADVICE = {
    "NoSuchBucket": "make it, or correct EMBEDMILL_OBJECTS_URL",
    "AccessDenied": _RIGHTS,
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "renew AWS_SESSION_TOKEN",
}
FORM = "s3://BUCKET/PREFIX?endpoint=URL&region=NAME&addressing=path"


@dataclass(frozen=True, slots=True)
class S3Location:
    """Where the objects are. Empty: what AWS_ENDPOINT_URL and AWS_REGION say."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    is_virtual: bool = False

    @classmethod
    def of(cls, url: str, setting: str) -> S3Location:
        """Parse the URL of a store. Raises ConfigError that names the setting, and never quotes the URL."""
        parts = urlsplit(url)
        given = dict(parse_qsl(parts.query, keep_blank_values=True))
        problem = ""
        if not parts.netloc:
            problem = "it names no bucket"
        elif "@" in parts.netloc:
            problem = "keys do not belong into it: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        elif unknown := sorted(set(given) - set(PARAMETERS)):
            problem = f"it has the unknown parameter {unknown[0][:40]!r}"
        elif not given.get("endpoint", "http://x").startswith(("http://", "https://")):
            problem = "its endpoint must begin with http:// or https://"
        elif given.get("addressing", "path") not in ADDRESSINGS:
            problem = "its addressing must be path or virtual"
        if problem:
            raise ConfigError(f"{setting} cannot be used: {problem}; its form is {FORM}", param=setting)
        if importlib.util.find_spec("obstore") is None:
            raise ConfigError(
                f"{setting} names an S3-compatible store, which needs the package obstore: install the extra `s3`, "
                "as in pip install 'embedmill[s3]'",
                param=setting,
            )
        return cls(
            bucket=parts.netloc,
            prefix=unquote(parts.path).strip("/"),
            endpoint=given.get("endpoint", ""),
            region=given.get("region", ""),
            is_virtual=given.get("addressing") == "virtual",
        )


class S3Objects:
    """A store in a bucket. Credentials are those of the environment: AWS_…, a profile of the machine, or a role."""

    # One segment is filled while the one before it is on its way.
    buffer_bytes = 2 * SEGMENT_BYTES

    def __init__(self, location: S3Location) -> None:
        self._location = location
        self._opened: S3Store | None = None

    @property
    def _store(self) -> S3Store:
        """The client, which has threads: not made before it is used, for a process may fork first."""
        if self._opened is None:
            from obstore.store import S3Store

            where = self._location
            options = {"endpoint": where.endpoint, "region": where.region}
            self._opened = S3Store(
                where.bucket,
                prefix=where.prefix or None,
                virtual_hosted_style_request=where.is_virtual,
                client_options={
                    "allow_http": where.endpoint.startswith("http://"),
                    "timeout": REQUEST_TIMEOUT,
                    "connect_timeout": CONNECT_TIMEOUT,
                },
                retry_config={"max_retries": MAX_RETRIES, "retry_timeout": RETRY_TIMEOUT},
                **{name: value for name, value in options.items() if value},  # type: ignore[arg-type]
            )
        return self._opened

    async def write(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """See ObjectStore."""
        buffer = bytearray()
        number = size = 0
        request: asyncio.Task[None] | None = None
        try:
            async for chunk in chunks:
                buffer += chunk
                size += len(chunk)
                while len(buffer) > SEGMENT_BYTES:
                    if request is not None:
                        await request
                    segment = bytes(memoryview(buffer)[:SEGMENT_BYTES])
                    del buffer[:SEGMENT_BYTES]
                    request = asyncio.create_task(self._put(f"{key}/{number:06d}", segment))
                    number += 1
            if request is not None:
                await request
            await self._put(f"{key}/{number:06d}{LAST}", bytes(buffer))
        finally:
            if request is not None and not request.done():
                # A request that is cancelled may still be carried out: `delete` must come behind it.
                await asyncio.wait({request})
        return size

    async def read(self, key: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore. Each piece is a request of its own: a reader that pauses keeps no connection."""
        import obstore

        segments = await self._segments(key)
        if not segments or not segments[-1][0].endswith(LAST):
            raise ObjectMissing("an object is not in the object store: it was removed, or is lost")
        position = 0  # of the segment
        for path, size in segments:
            low, high = max(start - position, 0), size if stop is None else min(stop - position, size)
            position += size
            while low < high:
                with self._translated():
                    piece = await obstore.get_range_async(
                        self._store, path, start=low, end=min(high, low + PIECE_BYTES)
                    )
                if not len(piece):
                    raise ObjectMissing("a segment of an object is shorter than the object store says")
                low += len(piece)
                yield piece.to_bytes()

    async def delete(self, key: str) -> None:
        """See ObjectStore. The last segment goes first: without it the object is not there."""
        import obstore

        paths = [path for path, _ in await self._segments(key)]
        if paths:
            with self._translated():
                await obstore.delete_async(self._store, paths[-1])
                if len(paths) > 1:
                    await obstore.delete_async(self._store, paths[:-1])

    async def check(self) -> None:
        """See ObjectStore."""
        key = random_id("check")
        await self.write(key, _one(b"embedmill"))
        async for _ in self.read(key):
            pass
        await self.delete(key)

    async def close(self) -> None:
        """Drop the client, and its connections with it."""
        self._opened = None

    async def _put(self, path: str, data: bytes) -> None:
        import obstore

        with self._translated():
            await obstore.put_async(self._store, path, data, use_multipart=False)

    async def _segments(self, key: str) -> list[tuple[str, int]]:
        """Path and size of each segment, in their order."""
        import obstore

        found: list[tuple[str, int]] = []
        with self._translated():
            async for metas in obstore.list(self._store, key, chunk_size=1000):
                found += [(meta["path"], meta["size"]) for meta in metas]
        return sorted(found)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Within the block, the errors of the client are raised as our own. No URL and no reply is quoted."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError, OSError) as error:
            found = _CODE.search(str(error))
            code = found[1] if found else ""
            if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
                raise ObjectMissing("an object is not in the object store: it was removed, or is lost") from error
            advice = ADVICE.get(
                code, f"check the endpoint, region and credentials that are set ({code or 'no answer'})"
            )
            raise ObjectsUnavailable(
                "The object store cannot be used. Try again later.",
                advice=f"bucket {self._location.bucket}: {advice}",
            ) from error


async def _one(chunk: bytes) -> AsyncIterator[bytes]:
    yield chunk
