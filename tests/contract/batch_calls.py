"""Batches through the API, with the work of the workers done in the test's own process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from engine.batches.composition import step_worker_of
from tests.gateway import Gateway
from tests.running import run_next_shard

BATCHES = "/v1/batches"


def request(custom_id: str, text: Any, model: str = "tiny", **fields: Any) -> bytes:
    """A line of an input file."""
    body = {"model": model, "input": text, **fields}
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body})


async def upload(gateway: Gateway, body: bytes, name: str = "in.jsonl") -> str:
    """Upload an input file. Returns its id."""
    reply = await gateway.client.post("/v1/files", data={"purpose": "batch"}, files={"file": (name, body)})
    file_id: str = reply.raise_for_status().json()["id"]
    return file_id


async def create(gateway: Gateway, lines: Sequence[bytes], **fields: Any) -> dict[str, Any]:
    """Create a batch of these lines. Returns the batch object."""
    body = {
        "input_file_id": await upload(gateway, b"\n".join(lines)),
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    batch: dict[str, Any] = (await gateway.client.post(BATCHES, json=body | fields)).raise_for_status().json()
    return batch


async def get(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    """The batch object."""
    batch: dict[str, Any] = (await gateway.client.get(f"{BATCHES}/{batch_id}")).raise_for_status().json()
    return batch


async def run_steps(gateway: Gateway, limit: int = 100) -> None:
    """Run the steps that are due, but no shards."""
    worker = step_worker_of(gateway.runtime, "w")
    for _ in range(limit):
        if not await worker.run_next():
            return


async def run_shards(gateway: Gateway, limit: int = 1000) -> None:
    """Run shards, but no steps."""
    for _ in range(limit):
        if not await run_next_shard(gateway.runtime):
            return


async def run(gateway: Gateway, batch_id: str) -> dict[str, Any]:
    """Do all that workers would. Returns the batch object at the end."""
    await run_steps(gateway)
    await run_shards(gateway)
    await run_steps(gateway)
    return await get(gateway, batch_id)


async def content(gateway: Gateway, file_id: str | None) -> bytes:
    """The bytes of a file; none for no file."""
    if file_id is None:
        return b""
    return (await gateway.client.get(f"/v1/files/{file_id}/content")).raise_for_status().content


async def lines_of(gateway: Gateway, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output or error file."""
    return [orjson.loads(line) for line in (await content(gateway, file_id)).splitlines()]
