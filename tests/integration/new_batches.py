"""Batches as a request creates them, and their validation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import func, insert, select, update

from engine.access.keys import Caller
from engine.batches.batch_request import BatchRequest, check_request
from engine.batches.create import insert_batch, job_id_of, new_batch_id
from engine.batches.steps import ClaimedStep, claim_step
from engine.batches.validate import validate_batch
from engine.files.composition import files_of
from engine.files.write import store_file
from engine.webhooks.endpoints import BATCH_EVENTS
from models.base import db_now, new_id
from models.batch import Batch, JobStep, JobVariant
from models.file import new_file_id
from models.webhook import WebhookEndpoint, WebhookEvent
from tests.integration.batches import chunks_of, step_parts
from tests.integration.store import Store

PROJECT = "p"


@dataclass
class NewBatch:
    """A batch that is not validated yet."""

    store: Store
    id: str

    @property
    def job_id(self) -> str:
        return job_id_of(self.id)

    async def row(self) -> Any:
        async with self.store.database.read() as connection:
            return (await connection.execute(select(*Batch.__table__.columns).where(Batch.id == self.id))).one()

    async def job(self) -> Any:
        return await self.store.job(self.job_id)

    async def step(self) -> Any:
        async with self.store.database.read() as connection:
            found = await connection.execute(select(*JobStep.__table__.columns).where(JobStep.job_id == self.job_id))
            return found.one_or_none()

    async def variants(self) -> list[Any]:
        columns = JobVariant.__table__.columns
        statement = select(*columns).where(JobVariant.job_id == self.job_id).order_by(JobVariant.number)
        async with self.store.database.read() as connection:
            return list((await connection.execute(statement)).all())

    async def events(self) -> list[str]:
        statement = select(WebhookEvent.type).where(WebhookEvent.subject_id == self.id)
        async with self.store.database.read() as connection:
            return list((await connection.execute(statement)).scalars())

    async def claim(self, store: Store | None = None) -> ClaimedStep:
        step = await claim_step((store or self.store).jobs, "w")
        assert step is not None and step.job_id == self.job_id, "no step was due"
        return step

    async def validate(self) -> Any:
        """Run the step. Returns the batch's row."""
        await validate_batch(step_parts(self.store), await self.claim())
        return await self.row()

    async def let_lease_pass(self) -> None:
        async with self.store.database.write() as connection:
            statement = update(JobStep).where(JobStep.job_id == self.job_id)
            await connection.execute(statement.values(lease_until=db_now() - 1))

    async def duplicate_lines(self) -> list[int]:
        packed = (await self.row()).duplicate_lines
        lines: list[int] = [] if packed is None else np.frombuffer(zlib.decompress(packed), dtype="<i8").tolist()
        return lines


async def put_file(store: Store, body: bytes, *, purpose: str = "batch", project: str = PROJECT) -> str:
    """A stored file. Returns its id."""
    file = await store_file(
        files_of(store.runtime),
        project=project,
        key_id="key",
        purpose=purpose,
        filename="in.jsonl",
        chunks=chunks_of(body),
        max_bytes=1 << 40,
        expires_after_s=None,
    )
    return str(file.id)


async def new_batch(
    store: Store,
    body: bytes | list[bytes] | None,
    *,
    purpose: str = "batch",
    owner: str = PROJECT,
    has_webhook: bool = False,
    default_model: str | None = None,
    **fields: Any,
) -> NewBatch:
    """A batch whose input file has these lines, and belongs to the project `owner`. None: there is no such file."""
    if isinstance(body, list):
        body = b"\n".join(body) + b"\n"
    file_id = new_file_id() if body is None else await put_file(store, body, purpose=purpose, project=owner)
    request = BatchRequest(endpoint="/v1/embeddings", input_file_id=file_id, completion_window="24h", **fields)
    spec = check_request(request, store.runtime.settings, is_inline=False)
    batch = NewBatch(store, new_batch_id())
    async with store.database.write() as connection:
        caller = Caller("key", PROJECT, frozenset())
        await insert_batch(
            connection, caller, batch.id, spec, input_file_id=file_id, is_inline=False, request_id="req_test"
        )
        if default_model is not None:
            await connection.execute(update(Batch).where(Batch.id == batch.id).values(default_model=default_model))
        if has_webhook:
            endpoint = {
                "id": new_id("we"),
                "project": PROJECT,
                "name": "n",
                "url": "https://example.com",
                "secret": "whsec_x",
                "event_types": [str(each) for each in BATCH_EVENTS],
                "created_at": db_now(),
            }
            await connection.execute(insert(WebhookEndpoint).values(endpoint))
    return batch


async def count_of(store: Store, table: Any) -> int:
    async with store.database.read() as connection:
        return int((await connection.execute(select(func.count()).select_from(table))).scalar_one())
