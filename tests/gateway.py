"""The whole gateway in this process: a Runtime on SQLite, the fake provider, and a client that speaks ASGI to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from sqlalchemy import select
from starlette.types import ASGIApp

from api.app import create_app
from engine.access.keys import create_key, load_pepper
from engine.config.settings import Settings
from engine.runtime import Runtime
from engine.upstream.call import Transport
from models.job import Shard
from models.key import Scope
from tests.running import run_shard

JOBS = "/v1/embeddings/jobs"
PEPPER = "a pepper that only tests use"
WIDTH = 16
# Every alias but `short` is one call upstream; the names say what is special about each.
CONFIG = """
[providers.fake]
kind = "fake"
script = [
    { when = { contains = "poison" }, do = { status = 400, message = "Invalid input." } },
    { when = { contains = "broken" }, do = { status = 503, retry_after_ms = 1 } },
]

[providers.local]
kind = "local"

[models.tiny]
dimensions = 16
allowed_dimensions = "1..16"
space = "fake/tiny"
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "fake", model = "up" }]

[models.cut]
dimensions = 16
allowed_dimensions = [4, 8]
input_usd_per_million_tokens = "0.02"
routes = [{ provider = "fake", model = "up", narrowing = "cut" }]

[models.fixed]
dimensions = 16
max_input_tokens = 32
routes = [{ provider = "fake", model = "up" }]

[models.short]
dimensions = 16
routes = [{ provider = "fake", model = "up", max_inputs_per_call = 7 }]
"""


@dataclass(slots=True)
class Gateway:
    runtime: Runtime
    app: ASGIApp
    client: httpx.AsyncClient
    key: str

    def transport(self) -> httpx.ASGITransport:
        """For clients of one's own: without a key, or with another."""
        return httpx.ASGITransport(self.app, raise_app_exceptions=False)

    async def embed(self, given: Any, *, model: str = "tiny", **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/embeddings", json={"model": model, "input": given, **fields})

    async def submit(self, given: Any, *, model: str = "tiny", **fields: Any) -> dict[str, Any]:
        """A job made from a JSON body: the job object."""
        reply = await self.client.post(JOBS, json={"model": model, "input": given, **fields})
        assert reply.status_code == 202, reply.text
        job: dict[str, Any] = reply.json()
        return job

    async def stream(self, body: bytes, kind: str = "application/x-ndjson", **query: Any) -> httpx.Response:
        encoding = {"content-encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
        return await self.client.post(
            JOBS, params={"model": "tiny", **query}, content=body, headers={"content-type": kind, **encoding}
        )

    async def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = (await self.client.get(f"{JOBS}/{job_id}")).raise_for_status().json()
        return job

    async def run(self, job_id: str, *, only: slice = slice(None)) -> dict[str, Any]:
        """Do what workers would: run the job's shards, in order. The job object afterwards."""
        for shard_id in (await self.shards(job_id))[only]:
            await run_shard(self.runtime, shard_id, "test")
        return await self.job(job_id)

    async def shards(self, job_id: str) -> Sequence[str]:
        async with self.runtime.database.read() as connection:
            found = await connection.execute(select(Shard.id).where(Shard.job_id == job_id).order_by(Shard.first_index))
            return found.scalars().all()

    async def results(self, job_id: str, **query: Any) -> httpx.Response:
        return (await self.client.get(f"{JOBS}/{job_id}/results", params=query)).raise_for_status()

    async def another_key(self, *, project: str = "other", scopes: Sequence[Scope] = tuple(Scope)) -> dict[str, str]:
        """The header of a fresh key."""
        pepper = load_pepper(self.runtime.settings.key_pepper, self.runtime.settings.data_dir)
        _, key = await create_key(self.runtime.database, pepper, project=project, scopes=scopes)
        return {"authorization": f"Bearer {key}"}


async def open_gateway(
    folder: Path, *, config: str = CONFIG, wire: Transport | None = None, **settings: Any
) -> Gateway:
    """Open a gateway whose database is already in `folder`. Close it with `close_gateway`."""
    file = folder / "embedmill.toml"
    file.write_text(config)
    runtime = Runtime.open(Settings(data_dir=folder, config=str(file), key_pepper=PEPPER, **settings), wire=wire)
    _, key = await create_key(runtime.database, PEPPER.encode())
    app = create_app(runtime)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    client = httpx.AsyncClient(
        transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {key}"}
    )
    return Gateway(runtime, app, client, key)


async def close_gateway(gateway: Gateway) -> None:
    await gateway.client.aclose()
    await gateway.runtime.close()


def error_of(reply: httpx.Response, *, has_code: bool = True) -> dict[str, Any]:
    """The error of a reply, which must be OpenAI's envelope and nothing else. Some errors of OpenAI's have no code."""
    assert reply.status_code >= 400, reply.text
    document = orjson.loads(reply.content)
    assert set(document) == {"error"}
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert bool(error["code"]) is has_code
    assert reply.headers["x-request-id"].startswith("req_")
    return error
