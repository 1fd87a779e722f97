"""Hostile patience: connections, polls, uploads and downloads that are slow, silent, broken off, or thousands."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from tests.influence.attack import CLOSED, JOBS, NDJSON, SYNC, Attack


async def slow_heads(attack: Attack) -> None:
    async def each() -> None:
        async with attack.connection() as (_, writer):
            attack.statuses[CLOSED] += 1
            writer.write(b"POST /v1/embeddings HTTP/1.1\r\nhost: gateway\r\n")
            while attack.left_s > 0:
                writer.write(b"x-slow: 1\r\n")
                await asyncio.sleep(0.1)

    await attack.crowd(300, each)


async def silent_connections(attack: Attack) -> None:
    async def each() -> None:
        async with attack.connection():
            attack.statuses[CLOSED] += 1
            await attack.hold()

    await attack.crowd(700, each)


async def slow_uploads(attack: Attack) -> None:
    async def each() -> None:
        async with attack.connection() as (_, writer):
            attack.statuses[CLOSED] += 1
            writer.write(attack.head("POST", f"{JOBS}?model={attack.model}", NDJSON, "chunked"))
            while attack.left_s > 0:
                writer.write(b'4\r\n"a"\n\r\n')
                await asyncio.sleep(0.1)

    await attack.crowd(60, each)


async def slow_bodies(attack: Attack) -> None:
    async def each() -> None:
        async with attack.connection() as (_, writer):
            attack.statuses[CLOSED] += 1
            writer.write(attack.head("POST", SYNC, {"content-type": "application/json"}, 1_000_000))
            while attack.left_s > 0:
                writer.write(b" " * 1_000)
                await asyncio.sleep(0.1)

    await attack.crowd(100, each)


async def long_polls(attack: Attack) -> None:
    """Of a job that does not end, as many as a key may have and many more."""
    _, answer = await attack.upload(b'"slow-%b"' % attack.fresh().encode())
    job_id = answer.partition(b'"id":"')[2].partition(b'"')[0].decode()
    await attack.crowd(300, lambda: attack.request("GET", f"{JOBS}/{job_id}?wait=30"))


async def quick_polls(attack: Attack) -> None:
    await attack.crowd(32, lambda: attack.request("GET", f"{JOBS}/{attack.job_id}"))


async def lists_of_jobs(attack: Attack) -> None:
    """Jobs with as long options as may be, listed a hundred at a time."""
    options = {"up": {"user_tag": "y" * 16_000}}
    metadata = {f"key {number}": "m" * 500 for number in range(16)}
    for _ in range(40):
        await attack.post(JOBS, attack.body([attack.fresh()], metadata=metadata, providerOptions=options))
    await attack.crowd(16, lambda: attack.request("GET", f"{JOBS}?limit=100"))


async def callers_who_hang_up(attack: Attack) -> None:
    async def each() -> None:
        with contextlib.suppress(ConnectionError):
            async with attack.connection() as (_, writer):
                body = attack.body(f"slow-{attack.fresh()}")
                writer.write(attack.head("POST", SYNC, {"content-type": "application/json"}, len(body)) + body)
                await asyncio.sleep(0.1)
                attack.statuses[CLOSED] += 1

    await attack.crowd(100, each)


async def readers_who_stop(attack: Attack) -> None:
    async def each() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as bare, contextlib.suppress(ConnectionError):
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            bare.setblocking(False)
            await loop.sock_connect(bare, (attack.host, attack.port))
            await loop.sock_sendall(bare, attack.head("GET", f"{JOBS}/{attack.job_id}/results"))
            start = await loop.sock_recv(bare, 64)
            attack.statuses[int(start.split()[1])] += 1
            if b" 200 " in start:
                await attack.hold()

    await attack.crowd(40, each)


async def quick_downloads(attack: Attack) -> None:
    await attack.crowd(8, lambda: attack.request("GET", f"{JOBS}/{attack.job_id}/results"))


async def lists_of_a_million_errors(attack: Attack) -> None:
    await attack.crowd(8, lambda: attack.request("GET", f"{JOBS}/{attack.refused_job_id}/errors"))


async def small_jobs(attack: Attack) -> None:
    await attack.crowd(8, lambda: attack.post(JOBS, attack.body([attack.fresh()])))


async def jobs_made_and_deleted(attack: Attack) -> None:
    async def each() -> None:
        _, answer = await attack.upload(b'"slow-%b"' % attack.fresh().encode())
        job_id = answer.partition(b'"id":"')[2].partition(b'"')[0].decode()
        for verb in ("pause", "resume", "cancel", "retry"):
            await attack.post(f"{JOBS}/{job_id}/{verb}", b"")
        await attack.request("DELETE", f"{JOBS}/{job_id}")

    await attack.crowd(4, each)


async def pipelined_requests(attack: Attack) -> None:
    async def each() -> None:
        async with attack.connection() as (reader, writer):
            writer.write(attack.head("GET", f"{JOBS}/{attack.job_id}") * 400)
            with contextlib.suppress(ConnectionError):
                while await reader.read(65_536):
                    pass
            attack.statuses[CLOSED] += 1

    await attack.crowd(16, each)


async def public_pages(attack: Attack) -> None:
    """What needs no key."""

    async def each() -> None:
        for path in ("/metrics", "/readyz", "/openapi.json", "/docs"):
            await attack.request("GET", path)

    await attack.crowd(8, each)
