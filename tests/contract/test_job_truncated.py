"""Jobs count the inputs that were not embedded whole, and their result lines say which those are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from engine.jobs.recording.spool_replay import decode_spool, encode_spool
from tests.contract.test_api_truncated import LONG, PROSE, RULES
from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, open_gateway


@pytest.fixture
async def cutting(data_dir: Path) -> AsyncIterator[Gateway]:
    config = CONFIG.replace("script = [", "script = [" + RULES)
    gateway = await open_gateway(data_dir, config=config, shard_inputs=8, batch_inputs=3)
    yield gateway
    await close_gateway(gateway)


async def cut(gateway: Gateway, job_id: str) -> list[int]:
    """The indexes whose lines say so, the same in both encodings; and the job counts them."""
    found: list[list[int]] = []
    for encoding in ("float", "base64"):
        text = (await gateway.results(job_id, encoding_format=encoding)).content
        lines = [orjson.loads(line) for line in text.splitlines()]
        assert [line["index"] for line in lines] == list(range(len(lines)))
        assert all(line.get("truncated", True) is True for line in lines)
        found.append([line["index"] for line in lines if "truncated" in line])
    assert found[0] == found[1]
    assert (await gateway.job(job_id))["truncated"] == len(found[0])
    return found[0]


@pytest.mark.parametrize("streamed", [False, True])
async def test_ends_that_we_cut(cutting: Gateway, streamed: bool) -> None:
    """They were cut in silence."""
    texts = [LONG + str(index) if index in (0, 7, 8, 19) else f"text {index}" for index in range(20)]
    if streamed:
        body = b"\n".join(map(orjson.dumps, texts))
        job = (await cutting.stream(body, model="fixed", truncate="end")).json()
    else:
        job = await cutting.submit(texts, model="fixed", truncate="end")
    assert job["truncated"] == 0
    assert (await cutting.run(job["id"]))["status"] == "completed"
    # Texts that are alike up to where they are cut are copies of one: they were cut all the same.
    assert await cut(cutting, job["id"]) == [0, 7, 8, 19]
    part = (await cutting.results(job["id"], start=7, stop=9)).content.splitlines()
    assert [orjson.loads(line)["truncated"] for line in part] == [True, True]


async def test_ends_that_the_provider_cut_or_made_us_cut(cutting: Gateway) -> None:
    long, silent = PROSE * 20 + "too much", PROSE * 200 + "silently"
    texts = ["a", long, "b", "c", "d", silent, *(f"text {index}" for index in range(14)), long, silent, "a"]
    job = await cutting.submit(texts, truncate="end")
    await cutting.run(job["id"])
    found = await cut(cutting, job["id"])
    # The last ones are copies, in another shard, of vectors that are of a part.
    assert {1, 20} <= set(found) and {5, 21} <= set(found)
    assert set(found) <= {1, 5, 20, 21}


async def test_an_input_that_failed_is_not_counted(cutting: Gateway) -> None:
    job = await cutting.submit(["a", "poison " + LONG, LONG], model="fixed", truncate="end")
    await cutting.run(job["id"])
    assert await cut(cutting, job["id"]) == [2]
    assert (await cutting.client.post(f"{JOBS}/{job['id']}/retry")).status_code == 200
    await cutting.run(job["id"])
    assert await cut(cutting, job["id"]) == [2]


async def test_nothing_is_said_where_nothing_is_cut(cutting: Gateway) -> None:
    job = await cutting.submit(["a", "b", LONG], model="fixed")
    await cutting.run(job["id"])
    assert await cut(cutting, job["id"]) == []
    assert b"truncated" not in (await cutting.results(job["id"])).content


async def test_a_deleted_job_leaves_nothing(cutting: Gateway) -> None:
    from sqlalchemy import func, select

    from engine.jobs.maintenance.purge import purge
    from models.job import TruncatedInputs

    job = await cutting.submit([LONG], model="fixed", truncate="end")
    await cutting.run(job["id"])
    await cutting.client.delete(f"{JOBS}/{job['id']}")
    await purge(cutting.runtime.store)
    async with cutting.runtime.database.read() as connection:
        count = await connection.execute(select(func.count()).select_from(TruncatedInputs))
        assert count.scalar_one() == 0


async def test_the_spool_keeps_it(cutting: Gateway) -> None:
    import numpy as np

    from engine.jobs.leasing.claim import claim
    from models.embedding import BatchOutcome

    job = await cutting.submit(["a", "b"])
    held = await claim(cutting.runtime.store, (await cutting.shards(job["id"]))[0], "w")
    assert held is not None
    from decimal import Decimal

    part = BatchOutcome([0, 1], np.ones((2, 16), dtype="<f4"), None, 2, False, Decimal(0), None, [1])
    assert decode_spool(encode_spool(held, [part], "r"))[1][0].truncated == [1]
