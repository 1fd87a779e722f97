"""Idempotency keys of requests that create a file, an upload or a batch: one that is sent again creates nothing twice.

The official SDKs send a request again after a timeout or a 5xx, and send no key. A request that says by its header
`x-stainless-retry-count` that it is such a one gets what the first one created, if both are equal to the byte.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import Settings
from engine.queue import worker_heartbeats
from engine.storage.database import Database
from models.base import db_now
from models.errors import Conflict, IdempotencyMismatch, InvalidInput, UploadInterrupted
from models.job import IdempotencyKey

MAX_KEY_CHARS = 255
# How long after the first request an SDK may send its last retry: two retries of ten minutes each, and their pauses.
RETRY_WINDOW_S = 1800.0
# No header can hold a line end, so no caller's key is equal to one of these.
RETRY_KEY = "\nretry:{}"


class Store(Protocol):
    """A JobStore or a FileStore."""

    @property
    def database(self) -> Database:
        """Where the keys are."""

    @property
    def settings(self) -> Settings:
        """How long they are remembered."""


@dataclass(frozen=True, slots=True)
class KeyReservation:
    """The exclusive right to create something under a key. `new_id`: the id that it must be given.

    `owner` is for UploadLeases, which renew the reservation while the body arrives. Without `key`: there was none.
    """

    project: str
    key: str | None
    new_id: str
    owner: str


@dataclass(frozen=True, slots=True)
class KeyReplay:
    """An earlier request with this key created this object; its body had this fingerprint."""

    id: str
    fingerprint: bytes

    def check(self, fingerprint: bytes) -> None:
        """Raises IdempotencyMismatch when the other request was another one."""
        if fingerprint != self.fingerprint:
            raise IdempotencyMismatch(
                "This Idempotency-Key was used before with another request. "
                "Send the same request again, or use a new key.",
                param="idempotency-key",
            )


def check_key(key: str | None) -> None:
    """Raises InvalidInput for a key that cannot be kept."""
    if key is not None and not 1 <= len(key) <= MAX_KEY_CHARS:
        raise InvalidInput("The Idempotency-Key must have 1 to 255 characters.", param="idempotency-key")


def fingerprint_of(kind: str, *pieces: bytes) -> bytes:
    """The hash of a request: what it creates, and the pieces that it consists of."""
    hasher = hashlib.sha256(kind.encode())
    for piece in pieces:
        hasher.update(b"\0%d\0" % len(piece) + piece)
    return hasher.digest()


async def reserve_key(
    store: Store, project: str, key: str | None, *, new_id: Callable[[], str]
) -> KeyReservation | KeyReplay:
    """Reserve a key for a request, or find what an earlier one created.

    Raises Conflict while another request is sent under the key; StorageUnavailable.
    """
    owner = f"{worker_heartbeats.process_name()}#{secrets.token_hex(8)}"
    reservation = KeyReservation(project, key, new_id(), owner)
    if key is None:
        return reservation
    lease_s = store.settings.lease_s
    values = {
        "job_id": reservation.new_id,
        "owner": owner,
        "owner_until": db_now() + lease_s,
        "expires_at": db_now() + lease_s,
        "fingerprint": None,
    }
    async with store.database.write() as connection:
        row = await claim_key(connection, store.database, project, key, values)
        if row is None:
            return reservation
        if row.fingerprint is not None:
            return KeyReplay(row.job_id, row.fingerprint)
        await connection.execute(
            update(IdempotencyKey).where(IdempotencyKey.project == project, IdempotencyKey.key == key).values(values)
        )
    return reservation


async def claim_key(
    connection: AsyncConnection, database: Database, project: str, key: str, values: Mapping[str, Any]
) -> Any:
    """Insert a key with these values. Returns None when it was inserted, and else the row that is there, locked.

    That row is of a request that has finished (it has a fingerprint), or of one that is given up: its process is dead,
    or its lease has run out. Raises Conflict while another request is sent under the key.
    """
    inserted = await connection.execute(
        database.insert(IdempotencyKey)
        .values(project=project, key=key, **values)
        .on_conflict_do_update(
            index_elements=["project", "key"], set_=values, where=IdempotencyKey.expires_at < db_now()
        )
        .returning(IdempotencyKey.job_id)
    )
    if inserted.scalar_one_or_none() == values["job_id"]:
        return None
    columns = (
        IdempotencyKey.job_id,
        IdempotencyKey.fingerprint,
        IdempotencyKey.owner,
        (IdempotencyKey.owner_until < db_now()).label("has_lapsed"),
    )
    is_this = (IdempotencyKey.project == project, IdempotencyKey.key == key)
    row: Any = (await connection.execute(select(*columns).where(*is_this).with_for_update())).one()
    if row.fingerprint is None and not (row.has_lapsed or owner_is_dead(row.owner)):
        raise Conflict(
            "A request with this Idempotency-Key is still being read: try again when it has been.",
            code="idempotency_in_flight",
            should_retry=True,
        )
    return row


def owner_is_dead(owner: str | None) -> bool:
    """True when there is no owner, or when it is a dead process of this machine."""
    return owner is None or worker_heartbeats.is_dead_local_process(owner.partition("#")[0])


async def finish_key(
    connection: AsyncConnection, store: Store, reservation: KeyReservation, fingerprint: bytes
) -> None:
    """Remember what the request created, in the transaction that creates it.

    Raises UploadInterrupted when another request has taken the key over.
    """
    if reservation.key is None:
        values = {
            "job_id": reservation.new_id,
            "fingerprint": fingerprint,
            "owner": None,
            "owner_until": None,
            "expires_at": db_now() + RETRY_WINDOW_S,
        }
        await connection.execute(
            store.database.insert(IdempotencyKey)
            .values(project=reservation.project, key=RETRY_KEY.format(fingerprint.hex()), **values)
            .on_conflict_do_update(index_elements=["project", "key"], set_=values)
        )
        return
    finished = await connection.execute(
        update(IdempotencyKey)
        .where(
            IdempotencyKey.project == reservation.project,
            IdempotencyKey.key == reservation.key,
            IdempotencyKey.owner == reservation.owner,
        )
        .values(
            fingerprint=fingerprint,
            owner=None,
            owner_until=None,
            expires_at=db_now() + store.settings.idempotency_hours * 3600.0,
        )
    )
    if finished.rowcount != 1:
        raise UploadInterrupted(
            "Another request with this Idempotency-Key has taken over: send this one again.", retry_after_s=1.0
        )


async def find_retried(store: Store, project: str, fingerprint: bytes) -> str | None:
    """The id that the last equal request without a key created, for one that says that it is a retry."""
    async with store.database.read() as connection:
        found = await connection.execute(
            select(IdempotencyKey.job_id).where(
                IdempotencyKey.project == project,
                IdempotencyKey.key == RETRY_KEY.format(fingerprint.hex()),
                IdempotencyKey.expires_at > db_now(),
            )
        )
        return found.scalar_one_or_none()


async def abandon_key(store: Store, reservation: KeyReservation) -> None:
    """Free the key of a request that created nothing. Raises StorageUnavailable."""
    if reservation.key is None:
        return
    async with store.database.write() as connection:
        await connection.execute(
            delete(IdempotencyKey).where(
                IdempotencyKey.project == reservation.project,
                IdempotencyKey.key == reservation.key,
                IdempotencyKey.owner == reservation.owner,
            )
        )


async def forget_keys_of(connection: AsyncConnection, created_id: str) -> None:
    """Forget the keys under which this object was created, once it is gone: a retry then makes a new one."""
    await connection.execute(delete(IdempotencyKey).where(IdempotencyKey.job_id == created_id))
