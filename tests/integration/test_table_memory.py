"""Memory of the API does not grow with the rows of a table that is downloaded, and a reader that goes leaves none."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from providers.fake import fake_vectors
from tests.api_process import ApiProcess
from tests.gateway import CONFIG, JOBS, close_gateway, open_gateway
from tests.integration.test_file_memory import MIB, Peak
from tests.waiting import wait_until

WIDTH, INPUTS = 64, 200_000  # 49 MiB of vectors
SMALL = INPUTS // 10
ALLOWED = 16 * MIB
WIDE = CONFIG + f'\n[models.wide]\ndimensions = {WIDTH}\nroutes = [{{ provider = "fake", model = "up" }}]\n'


@pytest.fixture(scope="module")
def finished(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A database with a large job that has ended, and the job's id."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "embedmill.db").write_bytes(migrated.read_bytes())

    async def run() -> str:
        gateway = await open_gateway(folder, config=WIDE)
        try:
            body = b"\n".join(orjson.dumps({"id": f"id {i}", "text": f"text {i}"}) for i in range(INPUTS))
            job = (await gateway.stream(body, model="wide")).json()
            assert (await gateway.run(job["id"]))["status"] == "completed"
        finally:
            await close_gateway(gateway)
        return str(job["id"])

    yield folder / "embedmill.db", asyncio.run(run())


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_memory_is_flat(finished: tuple[Path, str], tmp_path: Path, format: str) -> None:
    database, job_id = finished
    with (
        ApiProcess(database, tmp_path, config=WIDE, max_streams_per_key=2) as api,
        httpx.Client(base_url=api.url, headers={"authorization": f"Bearer {api.key}"}, timeout=100.0) as client,
    ):
        path = f"{JOBS}/{job_id}/results"
        peaks, bodies = [], []
        for stop in (SMALL, INPUTS):
            with Peak(api) as peak, client.stream("GET", path, params={"format": format, "stop": stop}) as reply:
                bodies.append(b"".join(reply.iter_raw()))
            peaks.append(peak.bytes)
        assert peaks[1] - peaks[0] < ALLOWED, peaks

        def is_served() -> bool:
            """The head and one piece of the body; then the connection is cut."""
            with client.stream("GET", path, params={"format": format}) as reply:
                next(reply.iter_raw())
                return reply.status_code == 200

        for _ in range(5):  # more than the key may have side by side: each gives its place back
            wait_until(is_served, 10.0, what="a place for the next reader")
    _check(bodies[1], format)


def _check(body: bytes, format: str) -> None:
    """The whole of it is right: bounded groups, and each row in its place."""
    if format == "parquet":
        file = pq.ParquetFile(io.BytesIO(body))
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        table = file.read()
    else:
        reader = pa.ipc.open_file(io.BytesIO(body))
        groups = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        table = reader.read_all()
    assert sum(groups) == INPUTS and max(groups) * WIDTH * 4 <= 4 * MIB and len(groups) < 400
    assert table["index"].to_numpy().tolist() == list(range(INPUTS))
    assert table["id"].to_pylist() == [f"id {i}" for i in range(INPUTS)]
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(INPUTS, WIDTH)
    some = [0, 1, 16_383, 16_384, 99_999, INPUTS - 1]
    assert vectors[some].tobytes() == fake_vectors([f"text {i}" for i in some], WIDTH, "up").tobytes()
