"""Idempotency keys: one request at a time uploads a corpus under a key; an interrupted upload can be continued."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.config.settings import Settings
from engine.files.idempotency import claim_key
from engine.job_store import JobStore
from engine.queue import worker_heartbeats
from models.base import db_now, new_id
from models.job import ACTIVE_STATUSES, IdempotencyKey, Job, JobStatus

# A job whose corpus is still arriving.
ARRIVING = and_(Job.status.in_((JobStatus.VALIDATING, *ACTIVE_STATUSES)), Job.total.is_(None), Job.deleted_at.is_(None))


@dataclass(frozen=True, slots=True)
class IdempotentReplay:
    """The Idempotency-Key was used by an earlier request, whose body had this fingerprint."""

    job_id: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Reservation:
    """The exclusive right to upload a corpus. `resumes`: an interrupted request has stored a part of it."""

    job_id: str
    owner: str
    key: str | None = None
    resumes: bool = False


def new_reservation(job_id: str | None = None, key: str | None = None, *, resumes: bool = False) -> Reservation:
    """A reservation of this process, of a new job unless `job_id` is passed."""
    owner = f"{worker_heartbeats.process_name()}#{secrets.token_hex(8)}"
    return Reservation(job_id or new_id("job"), owner, key, resumes)


def owner_is_alive_here(owner: str | None) -> bool:
    """True when the owner is a live process of this machine, possibly a suspended one."""
    return owner is not None and worker_heartbeats.is_alive_here(owner.partition("#")[0])


async def reserve(store: JobStore, project: str, key: str) -> Reservation | IdempotentReplay:
    """Reserve an Idempotency-Key for a new job or for the rest of an interrupted upload, or return its replay.

    Raises Conflict while another request uploads under this key; StorageUnavailable.
    """
    new = new_reservation(key=key)
    async with store.database.write() as connection:
        values = _values(store.settings, new) | {"fingerprint": None}
        row = await claim_key(connection, store.database, project, key, values)
        if row is None:
            return new
        if row.fingerprint is not None:
            return IdempotentReplay(row.job_id, row.fingerprint)
        reservation = await _take_over(store, connection, row.job_id, key) or new
        await connection.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.project == project, IdempotencyKey.key == key)
            .values(_values(store.settings, reservation))
        )
    return reservation


async def _take_over(store: JobStore, connection: AsyncConnection, job_id: str, key: str) -> Reservation | None:
    """Take the ownership of an interrupted upload; None: nothing of it is stored."""
    reservation = new_reservation(job_id, key, resumes=True)
    updated = await connection.execute(
        update(Job)
        .where(Job.id == job_id, ARRIVING, Job.upload_hash.is_not(None))
        .values(upload_owner=reservation.owner, upload_lease_until=db_now() + store.settings.lease_s)
    )
    return reservation if updated.rowcount else None


def _values(settings: Settings, reservation: Reservation) -> dict[str, Any]:
    return {
        "job_id": reservation.job_id,
        "owner": reservation.owner,
        "owner_until": db_now() + settings.lease_s,
        "expires_at": db_now() + settings.lease_s + settings.upload_resume_s,
    }


def owned_by(reservation: Reservation, project: str) -> ColumnElement[bool]:
    """Condition on a key: this reservation owns it."""
    return and_(
        IdempotencyKey.project == project,
        IdempotencyKey.key == reservation.key,
        IdempotencyKey.owner == reservation.owner,
    )
