"""The same flows by the SDK's asynchronous client, whose lists, polls and uploads are code of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from tests.contract.openai.openai_server import ENDPOINT, OpenAIServer, jsonl, lines
from tests.waiting import until


@pytest.fixture
async def async_client(openai_server: OpenAIServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=openai_server.url,
        api_key=openai_server.stack.key,
        timeout=30,
        _strict_response_validation=True,
    ) as client:
        yield client


async def test_a_batch_to_its_end(async_client: AsyncOpenAI) -> None:
    """2 and 3: a file that is uploaded in parts, its batch, and both from lists of several pages."""
    content = jsonl(lines(40))
    upload = await async_client.uploads.upload_file_chunked(
        file=content,
        filename="a.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1000,
    )
    assert upload.file is not None
    assert (await async_client.files.wait_for_processing(upload.file.id, poll_interval=0.01)).status == "processed"
    create = async_client.batches.create
    batches = [await create(input_file_id=upload.file.id, endpoint=ENDPOINT, completion_window="24h") for _ in range(3)]
    listed = [batch.id async for batch in async_client.batches.list(limit=2)]
    assert listed[:3] == [batch.id for batch in reversed(batches)]

    async def has_ended() -> bool:
        return (await async_client.batches.retrieve(batches[-1].id)).status == "completed"

    await until(has_ended, 40, every_s=0.1, what="the batch")
    batch = await async_client.batches.retrieve(batches[-1].id)
    assert batch.output_file_id is not None
    assert len((await async_client.files.content(batch.output_file_id)).content.splitlines()) == 40
    outputs = [file.id async for file in async_client.files.list(purpose="batch_output", limit=20)]
    assert batch.output_file_id in outputs


async def test_many_at_once(async_client: AsyncOpenAI) -> None:
    """Files and refusals side by side on one client: more uploads than a key may have at once wait for their turn."""
    files = async_client.files
    made = await asyncio.gather(*(files.create(file=(f"{n}.txt", b"x" * n), purpose="user_data") for n in range(1, 21)))
    assert [file.bytes for file in made] == [*range(1, 21)] and len({file.id for file in made}) == 20
    contents = await asyncio.gather(*(files.content(file.id) for file in made))
    assert [len(content.content) for content in contents] == [*range(1, 21)]
    deleted = await asyncio.gather(*(files.delete(file.id) for file in made))
    assert all(each.deleted for each in deleted)
    gone = await asyncio.gather(*(files.retrieve(file.id) for file in made), return_exceptions=True)
    assert all(isinstance(each, openai.NotFoundError) for each in gone)
