"""kill -9 while the output of a batch is written: another process goes on, and the files are those of a calm run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from engine.files.composition import files_of
from engine.files.purge import purge_files
from engine.files.read import VISIBLE
from models.base import db_now
from models.batch import Batch, BatchStatus, JobStep
from models.file import File, FilePart
from models.job import JobStatus
from models.webhook import EventType, WebhookEndpoint, WebhookEvent
from tests.integration.batches import PROJECT, RunBatch, run_batch
from tests.integration.store import Store
from tests.integration.test_batch_output import files

PART_BYTES = 400
# A process of its own: it opens the same database, claims the step, and dies where the failpoint says.
WRITER = """
import asyncio, sys
from pathlib import Path
from engine.batches.output import write_output
from engine.batches.steps import claim_step
from tests.integration.batches import step_parts
from tests.integration.store import Store

async def work(failpoints, folder, url, part_bytes):
    store = Store.open(url, Path(folder), failpoints=failpoints, lease_s=5.0)
    step = await claim_step(store.jobs, "w")
    assert step is not None
    await write_output(step_parts(store), step, part_bytes=int(part_bytes))
    await store.close()

asyncio.run(work(*sys.argv[1:]))
"""
KILLED = -9


def write_in_a_process(store: Store, folder: Path, failpoints: str) -> int:
    arguments = [failpoints, str(folder), store.runtime.settings.database_url, str(PART_BYTES)]
    done = subprocess.run(
        [sys.executable, "-c", WRITER, *arguments], check=False, timeout=60, capture_output=True, text=True
    )
    print(done.returncode, done.stderr[-1500:])
    return done.returncode


async def lapse(store: Store) -> None:
    """Let the time pass until another worker may go on."""
    async with store.database.write() as connection:
        await connection.execute(update(JobStep).values(lease_until=db_now() - 1))
        await connection.execute(update(FilePart).where(FilePart.owner_id.is_(None)).values(lease_until=db_now() - 1))


async def readable_outputs(store: Store) -> list[str]:
    """Names of the files that callers see."""
    async with store.database.read() as connection:
        found = await connection.execute(select(File.filename).where(File.purpose == "batch_output", VISIBLE))
        return sorted(found.scalars())


async def forget_output(batch: RunBatch) -> None:
    """Make the batch as it was before its output was written."""
    async with batch.store.database.write() as connection:
        await connection.execute(update(File).where(File.purpose == "batch_output").values(deleted_at=db_now()))
        await connection.execute(
            update(Batch)
            .where(Batch.id == batch.id)
            .values(status=BatchStatus.IN_PROGRESS, completed_at=None, output_file_id=None, error_file_id=None)
        )
        await connection.execute(
            insert(JobStep).values(job_id=batch.job_id, project=PROJECT, kind="run", due_at=db_now() - 1)
        )
        await connection.execute(WebhookEvent.__table__.delete())  # type: ignore[attr-defined]
    await purge_files(files_of(batch.store.runtime))


async def subscribe(store: Store) -> None:
    async with store.database.write() as connection:
        await connection.execute(
            insert(WebhookEndpoint).values(
                id="we_1",
                project=PROJECT,
                name="all",
                url="https://example.com",
                secret="whsec_x",
                event_types=[event.value for event in EventType],
                created_at=db_now(),
            )
        )


@pytest.mark.parametrize("place", ["after_output_part", "after_output_progress", "during_output_end"])
async def test_a_killed_writer_is_followed_by_another(store: Store, tmp_path: Path, place: str) -> None:
    await subscribe(store)
    sources = files(60)
    failures = {"text 7": "upstream_rejected", "text 31": "input_too_long", "text 58": "upstream_unavailable"}
    batch = await run_batch(store, b"\n".join(sources), failures=failures, status=JobStatus.COMPLETED_WITH_ERRORS)
    row = await batch.write(part_bytes=PART_BYTES)
    calm = await batch.content(row.output_file_id), await batch.content(row.error_file_id)
    assert calm[0].count(b"\n") == 57 and calm[1].count(b"\n") == 3 and len(calm[0]) > 5 * PART_BYTES
    await forget_output(batch)
    kills, skip = 0, 0
    while (ended := write_in_a_process(store, tmp_path, f"{place}=kill,skip={skip}")) != 0:
        assert ended == KILLED
        kills += 1
        assert await readable_outputs(store) == [] and (await batch.row()).output_file_id is None
        await lapse(store)
        if place == "during_output_end":
            assert write_in_a_process(store, tmp_path, "") == 0
            break
        skip = kills % 3  # at the first part, or the second or third from where the step goes on
    assert kills > (0 if place == "during_output_end" else 3)
    after = await batch.row()
    assert after.status == BatchStatus.COMPLETED and (after.completed, after.failed) == (57, 3)
    assert (await batch.content(after.output_file_id), await batch.content(after.error_file_id)) == calm
    assert await readable_outputs(store) == [f"{batch.id}_error.jsonl", f"{batch.id}_output.jsonl"]
    await only_the_parts_of_files_are_left(store, tmp_path)
    assert await store.count(WebhookEvent, WebhookEvent.type == EventType.BATCH_COMPLETED) == 1


async def only_the_parts_of_files_are_left(store: Store, folder: Path) -> None:
    """After the sweep, each row of a part belongs to a file, and each object to such a row."""
    await lapse(store)
    await purge_files(files_of(store.runtime))
    async with store.database.read() as connection:
        owners = set((await connection.execute(select(FilePart.owner_id))).scalars())
        ids = set((await connection.execute(select(File.id))).scalars())
        parts = set((await connection.execute(select(FilePart.id))).scalars())
    assert owners == ids
    stored = {path.name for path in (folder / "objects").rglob("part_*") if path.is_file()}
    assert stored == parts


async def test_a_kill_in_the_survey_begins_it_again(store: Store, tmp_path: Path) -> None:
    batch = await run_batch(store, b"\n".join(files(30)))
    await batch.claim()  # by a worker that dies before it writes anything
    await lapse(store)
    assert write_in_a_process(store, tmp_path, "") == 0
    row = await batch.row()
    assert row.status == BatchStatus.COMPLETED and row.completed == 30


async def test_a_worker_that_lost_its_step_writes_nothing(store: Store) -> None:
    from engine.batches.output import write_output
    from engine.batches.steps import StepStopped

    batch = await run_batch(store, b"\n".join(files(30)))
    slow = await batch.claim()
    await lapse(store)
    row = await batch.write()
    with pytest.raises(StepStopped):
        await write_output(batch.parts(), slow)
    assert await batch.row() == row and len(await readable_outputs(store)) == 1
