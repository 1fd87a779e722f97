"""Writes the ledger rows of sync calls, many in one transaction. Their content: engine/ledger/usage_rows.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from engine.durability.spool import SUFFIX_BAD, DamagedFile, Spool
from engine.observability.telemetry import USAGE_DROPPED, USAGE_WAITING, count_cost
from engine.process.background import ErrorLog, logging_errors, surviving
from engine.storage.database import Database
from models.base import db_now
from models.errors import Overloaded, StorageUnavailable
from models.usage import UsageRecord

log = logging.getLogger("embedmill.usage")
FLUSH_S = 0.5
FLUSH_ROWS = 200
REPLAY_EVERY_S = 5.0
MAX_BUFFERED_ROWS = 100_000


class UsageBuffer:
    """Buffer of ledger rows, written together: a transaction for each would cost more than the rest of the request.

    A crash loses at most the rows of the last half second. While the database is unavailable, rows go to files in
    `spool`, which any process with the same folder writes to the database later. Without a spool, or with a full disk,
    they wait in memory; rows beyond MAX_BUFFERED_ROWS are dropped, counted and logged.
    """

    def __init__(self, database: Database, spool: Spool | None = None) -> None:
        self._database = database
        self._spool = spool
        self._buffer: list[dict[str, Any]] = []
        self._rows_in_spool = 0
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._errors = ErrorLog("writing usage rows")
        self._drops = ErrorLog("keeping usage rows")

    def start(self) -> None:
        """Write rows from now on, and those that earlier processes left in the spool."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Buffer rows; they are written within half a second."""
        self._buffer.extend(records)
        self._drop_beyond_cap()
        self._update_gauge()
        self.start()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPLAY_EVERY_S):
                    await self._wake.wait()
            await asyncio.sleep(FLUSH_S)
            self._wake.clear()
            with self._errors.round() as writing:
                await self.flush()
                await self.replay()
            if writing.error is not None:
                await self._write_to_spool()
                if self._buffer:
                    self._wake.set()
            self._update_gauge()

    async def flush(self) -> None:
        """Write the buffered rows, which leave the buffer once they are committed. Raises StorageUnavailable."""
        async with self._writing:
            while self._buffer:
                rows = self._buffer[:FLUSH_ROWS]
                await self._write(rows)
                del self._buffer[: len(rows)]
        self._update_gauge()

    async def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        with surviving(passing=StorageUnavailable) as writing:
            await write(self._database, rows)
        if (error := writing.error) is not None:
            # A row that the database refuses must not block the others: writing them one by one finds it.
            if len(rows) == 1:
                _quarantine(self._spool, rows[0], error)
                return
            for record in rows:
                await self._write([record])

    async def _write_to_spool(self) -> None:
        if self._spool is None or not self._buffer:
            return
        async with self._writing:
            rows = list(self._buffer)
            file = await asyncio.to_thread(self._spool.write, _file_name(rows), _packed(rows))
            if file is not None:
                file.unlock()
                del self._buffer[: len(rows)]
                self._rows_in_spool += len(rows)

    async def replay(self) -> None:
        """Write the rows in the spool, of any process. Raises StorageUnavailable."""
        if self._spool is not None:
            await replay(self._database, self._spool)
            self._rows_in_spool = rows_in(self._spool)

    def _drop_beyond_cap(self) -> None:
        surplus = len(self._buffer) - MAX_BUFFERED_ROWS
        if surplus > 0:
            del self._buffer[MAX_BUFFERED_ROWS:]  # never from the front: those rows may be on their way to the database
            USAGE_DROPPED.inc(surplus)
            self._drops.failed(Overloaded(f"{surplus} ledger rows were dropped: neither database nor disk take them"))

    def _update_gauge(self) -> None:
        USAGE_WAITING.set(len(self._buffer) + self._rows_in_spool)

    async def close(self) -> None:
        """Write all buffered rows, to the spool if the database is unavailable."""
        if self._task is not None:
            async with (
                self._writing
            ):  # not between a commit and the removal from the buffer: the rows would be written twice
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with surviving() as writing:
            await self.flush()
        if writing.error is not None:
            await self._write_to_spool()
            if self._buffer:
                USAGE_DROPPED.inc(len(self._buffer))
                log.error("usage rows were lost at shutdown: %s", writing.error, extra={"count": len(self._buffer)})


async def write(database: Database, records: Sequence[dict[str, Any]]) -> None:
    """Insert rows; rows whose id exists already are skipped. Raises StorageUnavailable."""
    statement = database.insert(UsageRecord)
    if "at" not in records[0]:
        statement = statement.values(at=db_now())
    async with database.write() as connection:
        await connection.execute(statement.on_conflict_do_nothing(), list(records))
    count_cost(records)


async def replay(database: Database, spool: Spool) -> int:
    """Write the rows of orphaned spool files to the database. Returns their number. Raises StorageUnavailable."""
    count = 0
    for file in spool.orphaned():
        try:
            records = _unpacked(await asyncio.to_thread(file.read))
        except (DamagedFile, msgspec.MsgspecError, ValueError, OSError) as error:
            log.error("a file of usage rows is damaged, and set aside as .bad: %s", error)
            file.quarantine()
            continue
        with contextlib.ExitStack() as undo:
            undo.callback(file.unlock)  # StorageUnavailable, or this process ends
            with logging_errors("a file of usage rows was refused, and set aside as .bad", count=len(records)) as block:
                for low in range(0, len(records), FLUSH_ROWS):
                    await write(database, records[low : low + FLUSH_ROWS])
            undo.pop_all()
        if block.error is not None:
            file.quarantine()
        else:
            file.remove()
            log.info("usage rows were written from the spool", extra={"count": len(records)})
        count += 1
    return count


def rows_in(spool: Spool) -> int:
    """The number of rows in files of the spool."""
    return sum(int(name.split("-")[1]) for name in spool.names() if name.startswith("usage-"))


def _file_name(records: Sequence[dict[str, Any]]) -> str:
    return f"usage-{len(records)}"


def _packed(records: Sequence[dict[str, Any]]) -> bytes:
    # The rows may stay in the spool for hours: their time is this machine's clock, close enough to the database's.
    now = time.time()
    return msgspec.msgpack.encode([{"at": now, **record} for record in records])


def _unpacked(body: bytes) -> list[dict[str, Any]]:
    records = msgspec.msgpack.decode(body, type=list[dict[str, Any]])
    return [
        {**record, "cost_usd": Decimal(record["cost_usd"]), "usd_per_million_tokens": _price(record)}
        for record in records
    ]


def _price(record: dict[str, Any]) -> Decimal | None:
    price = record.get("usd_per_million_tokens")  # missing in files of earlier releases
    return None if price is None else Decimal(price)


def _quarantine(spool: Spool | None, record: dict[str, Any], error: Exception) -> None:
    """Keep a row that the database can never store in a file for an operator."""
    USAGE_DROPPED.inc()
    file = spool.write(_file_name([record]), _packed([record])) if spool is not None else None
    if file is not None:
        file.quarantine()
    location = f"it is in {file.path.with_suffix(SUFFIX_BAD)}" if file is not None else "it is lost"
    log.error("a usage row was refused, %s: %s", location, error, extra={"provider": record["provider"], "count": 1})
