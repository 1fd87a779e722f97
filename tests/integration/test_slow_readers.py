"""Readers of results that hardly read: what each holds is bounded, it is closed, and there may only be so many."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.api_process import ApiProcess, Reply, is_closed
from tests.gateway import CONFIG, JOBS, close_gateway, open_gateway
from tests.waiting import wait_until

WIDTH, INPUTS = 1536, 8_192  # 48 MiB of vectors, in blobs of up to 6 MiB
WIDE = CONFIG + '\n[models.wide]\ndimensions = 1536\nroutes = [{ provider = "fake", model = "up" }]\n'
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def finished(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A database with a large job that has ended, and the job's id."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "embedmill.db").write_bytes(migrated.read_bytes())

    async def run() -> str:
        gateway = await open_gateway(folder, config=WIDE)
        try:
            job = await gateway.submit([f"text {number}" for number in range(INPUTS)], model="wide")
            assert (await gateway.run(job["id"]))["status"] == "completed"
        finally:
            await close_gateway(gateway)
        return str(job["id"])

    yield folder / "embedmill.db", asyncio.run(run())


@pytest.mark.parametrize("shape", ["npy", "ndjson", "ndjson&encoding_format=base64"])
def test_150_slow_readers_hold_a_slice_each_and_are_closed(
    finished: tuple[Path, str], tmp_path: Path, shape: str
) -> None:
    database, job_id = finished
    settings = {"max_streams": 200, "max_streams_per_key": 200, "stall_timeout_s": 4}
    with ApiProcess(database, tmp_path, config=WIDE, **settings) as api, ExitStack() as stack:
        before = api.rss_bytes()
        readers = [stack.enter_context(api.connect(receive_bytes=4096)) for _ in range(150)]
        for reader in readers:
            reader.sendall(api.head("GET", f"{JOBS}/{job_id}/results?format={shape}"))
        peak = before

        def all_closed() -> bool:
            nonlocal peak
            peak = max(peak, api.rss_bytes())
            return sum(map(int, re.findall(r"closed (\d+) connections \(write_timeout\)", api.log))) == 150

        wait_until(all_closed, 90, what="the end of 150 readers that do not read")
        assert peak - before < 150 * 2 * MIB
        assert all(is_closed(reader) for reader in readers)


def test_streams_of_a_key_are_bounded_and_given_back(finished: tuple[Path, str], tmp_path: Path) -> None:
    database, job_id = finished
    head = f"{JOBS}/{job_id}/results?format=npy"
    with ApiProcess(database, tmp_path, config=WIDE, max_streams_per_key=3) as api, ExitStack() as stack:
        readers = [stack.enter_context(api.connect(receive_bytes=4096)) for _ in range(3)]
        for reader in readers:
            reader.sendall(api.head("GET", head))
            assert Reply(reader, has_body=False).status == 200
        with api.connect() as fourth:
            fourth.sendall(api.head("GET", head))
            refused = Reply(fourth)
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        for reader in readers:
            reader.close()
        headers = {"authorization": f"Bearer {api.key}"}

        def is_served() -> bool:
            with httpx.stream("GET", f"{api.url}{head}&stop=1", headers=headers) as reply:
                return reply.status_code == 200

        wait_until(is_served, 30, what="a stream after three readers have gone")


def test_slices_are_the_whole(finished: tuple[Path, str], tmp_path: Path) -> None:
    database, job_id = finished
    with ApiProcess(database, tmp_path, config=WIDE) as api:
        get = httpx.Client(base_url=api.url, headers={"authorization": f"Bearer {api.key}"}, timeout=60).get
        data = get(f"{JOBS}/{job_id}/results?format=npy").content
        whole = np.frombuffer(data[-INPUTS * WIDTH * 4 :], dtype="<f4").reshape(INPUTS, WIDTH)
        assert len(np.unique(whole, axis=0)) == INPUTS and np.isfinite(whole).all()
        for start, stop in ((0, 1), (84, 87), (1_000, 1_030), (4_090, 4_100), (8_191, 8_192)):
            part = get(f"{JOBS}/{job_id}/results?format=ndjson&start={start}&stop={stop}").text.splitlines()
            assert len(part) == stop - start
            cut = get(f"{JOBS}/{job_id}/results?format=npy&start={start}&stop={stop}").content
            assert cut.endswith(whole[start:stop].tobytes())
