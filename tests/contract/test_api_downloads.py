"""A download whose rows vanish: the connection breaks off, so that every HTTP client raises."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import httpx
import pytest
import uvicorn
from sqlalchemy import update
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.base import db_now
from models.job import Job
from tests.gateway import JOBS, Gateway, close_gateway, open_gateway
from tests.running import sweep


class Gate:
    """Around the app: an answer stands still after its second piece until it is let go on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.reached, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = 0

        async def slow(message: Message) -> None:
            nonlocal pieces
            await send(message)
            pieces += message["type"] == "http.response.body"
            if pieces == 2 and scope["path"].endswith("/results"):
                self.reached.set()
                await self.open.wait()

        await self._app(scope, receive, slow)


@pytest.fixture
async def gateway(data_dir: Path) -> AsyncIterator[Gateway]:
    gateway = await open_gateway(data_dir, shard_inputs=16, batch_inputs=6)
    yield gateway
    await close_gateway(gateway)


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))  # listens already: nobody has to wait for the server
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("client", ["httpx", "aiohttp"])
@pytest.mark.parametrize("query", ["?format=npy", "", "?encoding_format=base64"])
async def test_every_client_raises(gateway: Gateway, query: str, client: str) -> None:
    job = await gateway.run((await gateway.submit([f"text {i}" for i in range(100)]))["id"])
    gate = Gate(gateway.app)
    async with served(gate) as url:
        headers = {"authorization": f"Bearer {gateway.key}"}
        reading = asyncio.create_task(read_all(client, f"{url}{JOBS}/{job['id']}/results{query}", headers))
        await asyncio.wait_for(gate.reached.wait(), 30)
        (await gateway.client.delete(f"{JOBS}/{job['id']}")).raise_for_status()
        async with gateway.runtime.database.write() as connection:  # as if the reader had stood still past its lease
            await connection.execute(update(Job).values(read_until=db_now() - 1))
        for _ in range(4):
            await sweep(gateway.runtime)
        gate.open.set()
        with pytest.raises((httpx.RemoteProtocolError, aiohttp.ClientPayloadError)):
            await asyncio.wait_for(reading, 30)


async def test_a_client_whose_job_is_deleted_gets_the_rest(gateway: Gateway) -> None:
    job = await gateway.run((await gateway.submit([f"text {i}" for i in range(100)]))["id"])
    whole = (await gateway.results(job["id"], format="npy")).content
    gate = Gate(gateway.app)
    async with served(gate) as url:
        headers = {"authorization": f"Bearer {gateway.key}"}
        reading = asyncio.create_task(read_all("httpx", f"{url}{JOBS}/{job['id']}/results?format=npy", headers))
        await asyncio.wait_for(gate.reached.wait(), 30)
        (await gateway.client.delete(f"{JOBS}/{job['id']}")).raise_for_status()
        for _ in range(4):
            await sweep(gateway.runtime)
        assert (await gateway.client.get(f"{JOBS}/{job['id']}")).status_code == 404
        gate.open.set()
        assert await asyncio.wait_for(reading, 30) == whole


async def read_all(client: str, url: str, headers: dict[str, str]) -> bytes:
    if client == "httpx":
        async with httpx.AsyncClient(timeout=30) as http:
            return (await http.get(url, headers=headers)).content
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as reply:
        return await reply.read()
