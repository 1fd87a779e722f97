"""The header Idempotency-Key of requests that create a file, an upload or a batch."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Request

from api.http.auth import caller_of, runtime_of
from engine.files import idempotency
from engine.files.composition import files_of
from engine.files.idempotency import KeyReplay, KeyReservation
from engine.process.background import surviving
from models.errors import Conflict

log = logging.getLogger("embedmill.api")
REPLAYED = {"idempotent-replayed": "true"}


@asynccontextmanager
async def reserved_key(request: Request, new_id: Callable[[], str]) -> AsyncIterator[KeyReservation | KeyReplay]:
    """The request's key for the block, which must finish it; the key is free again when the block raises.

    Raises InvalidInput, Conflict, StorageUnavailable.
    """
    key = request.headers.get("idempotency-key")
    idempotency.check_key(key)
    runtime, store = runtime_of(request), files_of(runtime_of(request))
    reserved = await idempotency.reserve_key(store, caller_of(request).project, key, new_id=new_id)
    if isinstance(reserved, KeyReplay) or key is None:
        yield reserved
        return
    runtime.upload_leases.keep(reserved.owner)
    is_finished = False
    try:
        yield reserved
        is_finished = True
    finally:
        runtime.upload_leases.drop(reserved.owner)
        if not is_finished:
            # What cannot be freed is free once its lease has run out.
            with surviving(lambda error: log.warning("a key of a request that failed is not free yet: %s", error)):
                await idempotency.abandon_key(store, reserved)


def is_retry(request: Request) -> bool:
    """The client says that it sends the request again, as the official SDKs do."""
    return request.headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")


async def created_before(request: Request, reserved: KeyReservation | KeyReplay, fingerprint: bytes) -> str | None:
    """The id of what an equal request has created before; None: nothing. Raises IdempotencyMismatch."""
    if isinstance(reserved, KeyReplay):
        reserved.check(fingerprint)
        return reserved.id
    if reserved.key is None and is_retry(request):
        return await idempotency.find_retried(files_of(runtime_of(request)), reserved.project, fingerprint)
    return None


def deleted_meanwhile() -> Conflict:
    """The error of a replay whose object is gone; its key is gone too."""
    return Conflict(
        "What this Idempotency-Key created was deleted just now: send the request again.", should_retry=True
    )
