"""Renews the leases of uploads in a thread with its own connection, so that a busy event loop does not lose them."""

from __future__ import annotations

import asyncio
import threading

from sqlalchemy import update

from engine.process.background import ErrorLog
from engine.storage.database import Database
from models.base import db_now
from models.job import IdempotencyKey, Job


class UploadLeases:
    """The leases of the uploads that this process receives. The thread runs while there are any."""

    def __init__(self, url: str, *, lease_s: float, heartbeat_s: float, resume_s: float) -> None:
        self._url = url
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._resume_s = resume_s
        self._owners: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._errors = ErrorLog("the renewal of the leases of uploads")

    def keep(self, owner: str) -> None:
        """Renew the lease of this owner until it is dropped."""
        with self._lock:
            self._owners.add(owner)
            if self._thread is None:
                self._wake.clear()
                self._thread = threading.Thread(target=self._run, name="upload-leases", daemon=True)
                self._thread.start()

    def drop(self, owner: str) -> None:
        """Stop renewing the lease of this owner."""
        with self._lock:
            self._owners.discard(owner)

    def close(self) -> None:
        """Stop renewing all leases, and end the thread."""
        with self._lock:
            self._owners.clear()
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join(timeout=self._heartbeat_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(self._heartbeat_s)
            with self._lock:
                owners = sorted(self._owners)
                if not owners:
                    self._thread = None
                    return
            with self._errors.round():
                asyncio.run(self._renew(owners))

    async def _renew(self, owners: list[str]) -> None:
        database = Database(self._url, pool_size=1)
        try:
            await renew(database, owners, lease_s=self._lease_s, resume_s=self._resume_s)
        finally:
            await database.close()


async def renew(database: Database, owners: list[str], *, lease_s: float, resume_s: float) -> None:
    """Renew the leases of these uploads. Raises StorageUnavailable.

    A complete corpus has no lease any more; a late renewal does not restore it.
    """
    async with database.write() as connection:
        await connection.execute(
            update(Job)
            .where(Job.upload_owner.in_(owners), Job.upload_lease_until.is_not(None))
            .values(upload_lease_until=db_now() + lease_s)
        )
        await connection.execute(
            update(IdempotencyKey)
            .where(IdempotencyKey.owner.in_(owners), IdempotencyKey.fingerprint.is_(None))
            .values(owner_until=db_now() + lease_s, expires_at=db_now() + lease_s + resume_s)
        )
