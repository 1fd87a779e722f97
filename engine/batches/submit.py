"""Takes a request for a batch in either form: its body is read as it arrives, and the batch is created at its end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from engine.access.keys import Caller
from engine.batches.batch_request import BatchSpec, check_request
from engine.batches.batch_rows import get_batch
from engine.batches.create import attach_callback, insert_batch
from engine.batches.inline import InlineBody
from engine.batches.submit_parts import SubmitParts
from engine.corpus.lines import ByteLimit
from engine.corpus.parser import Decoder
from engine.files.idempotency import (
    KeyReplay,
    KeyReservation,
    find_retried,
    finish_key,
    forget_keys_of,
)
from engine.files.parts import PartLeases, WrittenPart, add_file, adopt_part
from engine.files.purposes import BATCH_LIFE_S
from engine.files.write import discard_parts, store_parts
from engine.process.memory_budget import ByteLease
from engine.webhooks.targets import CheckedUrl
from models.base import db_now
from models.errors import Conflict, PayloadTooLarge
from models.file import FilePurpose, new_file_id
from models.file_errors import BatchNotFound

log = logging.getLogger("embedmill.batches")


@dataclass(frozen=True, slots=True)
class ArrivingBody:
    """The body of a request. `check_client` raises once the client is gone; `recheck_key` once its key is revoked."""

    chunks: AsyncIterator[bytes]
    decoder: Decoder
    check_client: Callable[[], None]
    recheck_key: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class SubmittedBatch:
    """The batch of a request. `is_replay`: an earlier request created it. `callback_secret`: signs its deliveries."""

    batch_id: str
    is_replay: bool = False
    callback_secret: str | None = None


async def submit_batch(
    parts: SubmitParts,
    caller: Caller,
    body: ArrivingBody,
    reserved: KeyReservation | KeyReplay,
    *,
    is_retry: bool,
    request_id: str,
) -> SubmittedBatch:
    """Create the batch of a request, or find the one of an earlier, equal request.

    `reserved`: its Idempotency-Key. `is_retry`: the client says that it sends the request again. Whatever it raises,
    nothing of the request is kept. Raises RequestError, ObjectsUnavailable, StorageUnavailable.
    """
    if isinstance(reserved, KeyReplay):
        return await _replay(parts, caller, reserved, body)
    return await _Submission(parts, caller, reserved, body, request_id).run(is_retry=is_retry)


async def _replay(parts: SubmitParts, caller: Caller, replay: KeyReplay, body: ArrivingBody) -> SubmittedBatch:
    hasher = _new_hasher()
    async for chunk in body.chunks:
        hasher.update(chunk)
    replay.check(hasher.digest())
    try:
        await get_batch(parts.store, caller.project, replay.id)
    except BatchNotFound as error:
        async with parts.store.database.write() as connection:
            await forget_keys_of(connection, replay.id)
        raise Conflict(
            "The batch of this Idempotency-Key was deleted: send the request again for a new one.", should_retry=True
        ) from error
    return SubmittedBatch(replay.id, is_replay=True)


def _new_hasher() -> hashlib._Hash:
    return hashlib.sha256(b"batch\0")


class _Submission:
    """One request whose body arrives."""

    def __init__(
        self, parts: SubmitParts, caller: Caller, reservation: KeyReservation, body: ArrivingBody, request_id: str
    ) -> None:
        settings = parts.store.settings
        self._parts = parts
        self._caller = caller
        self._reservation = reservation
        self._arriving = body
        self._request_id = request_id
        self._hasher = _new_hasher()
        self._body = InlineBody(max_line_bytes=settings.max_line_bytes)
        self._limit = ByteLimit(settings.max_job_bytes)

    async def run(self, *, is_retry: bool) -> SubmittedBatch:
        """Read the body and create the batch."""
        files, project = self._parts.files, self._caller.project
        async with PartLeases(files.database, lease_s=files.settings.lease_s) as leases:
            with self._parts.memory.lease(project) as memory:
                file_parts = await self._store_lines(leases, memory)
            is_created = False
            try:
                submitted = await self._create(file_parts, is_retry=is_retry)
                is_created = not submitted.is_replay
            finally:
                if not is_created:
                    await discard_parts(files, file_parts)
        return submitted

    async def _store_lines(self, leases: PartLeases, memory: ByteLease) -> list[WrittenPart]:
        max_bytes = self._parts.store.settings.max_file_bytes
        try:
            return await store_parts(
                leases, self._parts.files, self._caller.project, self._lines(memory), max_bytes=max_bytes
            )
        except PayloadTooLarge as error:
            if error.param != "file":
                raise
            raise PayloadTooLarge(
                f"The requests are more than {max_bytes} bytes as a file: send them as several batches.",
                param="requests",
            ) from None

    async def _lines(self, memory: ByteLease) -> AsyncIterator[bytes]:
        """The lines of the requests, as they arrive; none for a body of the file form."""

        def steps(chunk: bytes) -> Iterator[bytes]:
            for piece in self._arriving.decoder.feed(chunk):
                self._limit.take(len(piece))
                self._arriving.check_client()
                yield from self._body.feed(piece)

        async for chunk in self._arriving.chunks:
            self._hasher.update(chunk)
            async for lines in self._parts.work.drive(self._caller.project, steps(chunk)):
                if lines:
                    yield lines
            if not memory.try_resize(self._body.buffered_bytes):
                await memory.resize(self._body.buffered_bytes)
        self._arriving.decoder.finish()

    async def _create(self, file_parts: list[WrittenPart], *, is_retry: bool) -> SubmittedBatch:
        parts, body = self._parts, self._body
        request = await parts.work.run(self._caller.project, body.finish)
        spec = check_request(request, parts.store.settings, is_inline=body.has_requests)
        fingerprint = self._hasher.digest()
        if is_retry and self._reservation.key is None:
            earlier = await self._find_earlier(fingerprint)
            if earlier is not None:
                return SubmittedBatch(earlier, is_replay=True)
        url = None
        if spec.callback_url is not None:
            url = await parts.targets.check(spec.callback_url, "callback_url")
        await self._arriving.recheck_key()
        return await self._insert(spec, file_parts, url, fingerprint)

    async def _find_earlier(self, fingerprint: bytes) -> str | None:
        batch_id = await find_retried(self._parts.store, self._caller.project, fingerprint)
        if batch_id is None:
            return None
        try:
            await get_batch(self._parts.store, self._caller.project, batch_id)
        except BatchNotFound:
            return None
        return batch_id

    async def _insert(
        self, spec: BatchSpec, file_parts: list[WrittenPart], url: CheckedUrl | None, fingerprint: bytes
    ) -> SubmittedBatch:
        batch_id, caller, is_inline = self._reservation.new_id, self._caller, self._body.has_requests
        file_id = new_file_id() if is_inline or spec.input_file_id is None else spec.input_file_id
        secret = None
        async with self._parts.store.database.write() as connection:
            if is_inline:
                for ordinal, part in enumerate(file_parts):
                    await adopt_part(connection, part, owner_id=file_id, ordinal=ordinal)
                await add_file(
                    connection,
                    file_id=file_id,
                    project=caller.project,
                    key_id=caller.key_id,
                    purpose=FilePurpose.BATCH,
                    filename=f"{batch_id}_input.jsonl",
                    parts_of=file_id,
                    expires_at=db_now() + float(BATCH_LIFE_S),
                )
            await insert_batch(
                connection,
                caller,
                batch_id,
                spec,
                input_file_id=file_id,
                is_inline=is_inline,
                request_id=self._request_id,
            )
            if url is not None:
                secret = (await attach_callback(connection, caller, batch_id, url)).secret
            await finish_key(connection, self._parts.store, self._reservation, fingerprint)
        log.info("batch accepted", extra={"batch_id": batch_id, "is_inline": is_inline})
        return SubmittedBatch(batch_id, callback_secret=secret)
