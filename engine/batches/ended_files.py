"""What an ended batch still has of its results: both its files, or an error that says what became of them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import Row

from engine.files.file_store import FileStore
from engine.files.read import get_file
from models.batch import BatchStatus
from models.errors import Conflict
from models.file_errors import BatchOutputDeleted, FileNotFound


async def check_files(store: FileStore, project: str, batch: Row[Any]) -> None:
    """Raises BatchOutputDeleted where a file is gone, and Conflict where the batch failed without one."""
    written = {"output_file_id": batch.output_file_id, "error_file_id": batch.error_file_id}
    written = {name: file_id for name, file_id in written.items() if file_id is not None}
    there: dict[str, str] = {}
    for name, file_id in written.items():
        with suppress(FileNotFound):
            there[name] = (await get_file(store, project, file_id)).id
    if there != written:
        raise output_deleted(there)
    if batch.status == BatchStatus.FAILED and not written:
        raise Conflict(
            f"This batch has failed, and has no results: GET /v1/batches/{batch.id} names its errors. "
            "Correct what they name, and create a new batch.",
            code="batch_failed",
        )


def output_deleted(there: dict[str, str]) -> BatchOutputDeleted:
    """The error of a batch whose results are gone. `there`: which of its files are not, with their ids."""
    rest = "".join(
        f" Its {name} is still there: GET /v1/files/{file_id}/content has its lines." for name, file_id in there.items()
    )
    return BatchOutputDeleted(
        f"The output of this batch was deleted, or has expired, and its results with it.{rest} "
        "Send the same requests as a new batch to have them again."
    )
