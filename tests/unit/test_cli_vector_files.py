"""Files out: every row in its place, whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from cli.client.types import Counts, ErrorGroup, Job
from cli.errors import CliError, UsageError
from cli.files.save import ENDINGS, atomic_write, check_complete, check_target, save_results, write_ndjson
from cli.output.progress import summary
from tests.cli_fake_api import JOB_ID, WIDTH, FakeApi

ROWS = 10
FAILED = 3
RANGE_BYTES = 4 * WIDTH * 4  # four rows a request: ranges of 4, 4 and 2


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    api.bodies.append(
        b"".join(b'{"id":"n%d","text":%s}\n' % (i, b'""' if i == FAILED else b'"t"') for i in range(ROWS))
    )
    return api


def finished(rows: int = ROWS) -> Job:
    return Job(id=JOB_ID, status="completed_with_errors", dimensions=WIDTH, counts=Counts(total=rows))


def saved(api: FakeApi, path: Path) -> Path:
    steps: list[int] = []
    save_results(api.client(), finished(), path, steps.append, range_bytes=RANGE_BYTES)
    assert steps == [4, 8, 10]
    assert list(path.parent.iterdir()) == [path]
    return path


def test_npy(api: FakeApi, tmp_path: Path) -> None:
    vectors = np.load(saved(api, tmp_path / "v.npy"), mmap_mode="r")
    assert vectors.shape == (ROWS, WIDTH)
    assert vectors.dtype == np.float32
    assert np.isnan(vectors[FAILED]).all()
    for i in set(range(ROWS)) - {FAILED}:
        assert (vectors[i] == i).all()


@pytest.mark.parametrize("ending", [".ndjson", ".jsonl"])
def test_ndjson(api: FakeApi, tmp_path: Path, ending: str) -> None:
    lines = [json.loads(line) for line in saved(api, tmp_path / f"v{ending}").read_bytes().split(b"\n")[:-1]]
    assert [line["index"] for line in lines] == list(range(ROWS))
    assert "error" in lines[FAILED]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_arrow(api: FakeApi, tmp_path: Path, ending: str) -> None:
    path = saved(api, tmp_path / f"v{ending}")
    table = pa.parquet.read_table(path) if ending == ".parquet" else pa.ipc.open_file(path).read_all()
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    assert table.column("index").to_pylist() == list(range(ROWS))
    assert table.column("id").to_pylist() == [f"n{i}" for i in range(ROWS)]
    assert table.column("error").to_pylist() == ["invalid_input: no" if i == FAILED else None for i in range(ROWS)]
    assert table.column("embedding").to_pylist() == [None if i == FAILED else [i] * WIDTH for i in range(ROWS)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_server_that_holds_fewer_rows_leaves_the_old_file_alone(api: FakeApi, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"v{ending}"
    path.write_bytes(b"the old one")

    def cut(request: httpx.Request) -> None:
        if request.url.params.get("start") == "4":
            request.url = request.url.copy_set_param("stop", "7")

    api.on_request = cut
    with pytest.raises(CliError, match="the server has 3 of the results 4 to 7"):
        save_results(api.client(), finished(), path, print, range_bytes=RANGE_BYTES)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


class BrokenStream(httpx.SyncByteStream):
    """Sends the first bytes, then the connection is gone."""

    def __init__(self, start: bytes) -> None:
        self.start = start

    def __iter__(self) -> Iterator[bytes]:
        yield self.start
        raise httpx.ReadError("connection reset")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("arrived", [5, 100, 140, 150, 200])
def test_a_broken_download_goes_on_where_it_was(api: FakeApi, tmp_path: Path, ending: str, arrived: int) -> None:
    whole, broken = tmp_path / f"whole{ending}", tmp_path / f"broken{ending}"
    save_results(api.client(), finished(), whole, print, range_bytes=RANGE_BYTES)

    def break_once(request: httpx.Request) -> None:
        if request.url.params.get("start") == "4" and not api.sleeps:
            api.on_request = lambda request: None
            api.faults = [httpx.Response(200, stream=BrokenStream(api.answer(request).content[:arrived]))]

    api.on_request = break_once
    save_results(api.client(), finished(), broken, print, range_bytes=RANGE_BYTES)
    assert len(api.sleeps) == 1
    assert broken.read_bytes() == whole.read_bytes()


def test_a_pipe_cannot_take_back_what_it_swallowed(api: FakeApi) -> None:
    api.faults = [httpx.Response(200, stream=BrokenStream(b'{"index":0,'))]
    with pytest.raises(CliError, match="broke off at 0 of 10"):
        write_ndjson(api.client(), finished(), io.BytesIO())


def test_rows_so_far_go_to_a_stream(api: FakeApi) -> None:
    stream = io.BytesIO()
    assert write_ndjson(api.client(), finished(), stream) == 1
    assert stream.getvalue().count(b"\n") == ROWS
    with pytest.raises(CliError, match="still being read"):
        check_complete(Job(id=JOB_ID, status="validating"), partial=True)


def test_an_interrupt_leaves_no_half_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "v.npy") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["v", "v.txt", "no/such/folder/v.npy", "folder.npy"])
def test_a_target_that_cannot_be_is_refused_early(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(UsageError):
        check_target(tmp_path / name)


@pytest.mark.parametrize("status", ["cancelled", "failed", "in_progress", "paused", "expired"])
def test_a_part_of_the_results_is_given_only_when_asked_for(status: str) -> None:
    job = Job(id=JOB_ID, status=status, counts=Counts(total=ROWS, completed=4, pending=6), dimensions=4)
    with pytest.raises(CliError, match=r"4 of its 10 inputs have a vector.*--partial"):
        check_complete(job, partial=False)
    check_complete(job, partial=True)


@pytest.mark.parametrize(
    ("status", "errors", "reason"),
    [
        (
            "failed",
            [ErrorGroup("invalid_encoding", 0, None, "the gzip stream is cut off: send all of it")],
            "send all of",
        ),
        (
            "failed",
            [ErrorGroup("invalid_input", 2, 0, "no"), ErrorGroup("upload_interrupted", 0, None, "lost")],
            "lost",
        ),
        ("cancelled", [], "send it again"),
    ],
)
def test_a_job_that_ended_while_its_corpus_arrived_says_why(status: str, errors: list[ErrorGroup], reason: str) -> None:
    """It said that its corpus was still being read."""
    job = Job(id=JOB_ID, status=status, errors=errors)
    with pytest.raises(CliError, match=f"is {status}, before its corpus.*{reason}") as caught:
        check_complete(job, partial=True)
    assert "still" not in str(caught.value) and "(no" not in str(caught.value)
    assert all(group.code in summary(job) for group in errors if not group.count)


@pytest.mark.parametrize(
    ("status", "waiting_on", "advice"),
    [
        ("paused", None, f"`embedmill jobs resume {JOB_ID}` lets it go on"),
        ("paused", "budget", f"`embedmill jobs resume {JOB_ID} --max-cost USD` lets it go on"),
        ("in_progress", None, f"`embedmill jobs wait {JOB_ID}` first"),
        ("cancelled", None, "(--partial"),
    ],
)
def test_the_advice_for_results_is_what_the_job_needs(status: str, waiting_on: str | None, advice: str) -> None:
    job = Job(id=JOB_ID, status=status, waiting_on=waiting_on, counts=Counts(total=ROWS, completed=4), dimensions=4)
    with pytest.raises(CliError) as caught:
        check_complete(job, partial=False)
    assert advice in str(caught.value)
    assert ("jobs wait" in str(caught.value)) == (status == "in_progress")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_part_of_the_results_counts_what_is_missing(api: FakeApi, tmp_path: Path, ending: str) -> None:
    whole, part = tmp_path / f"whole{ending}", tmp_path / f"part{ending}"
    assert save_results(api.client(), finished(), whole, print, range_bytes=RANGE_BYTES) == 1
    api.pending = {2, 7}
    assert save_results(api.client(), finished(), part, print, range_bytes=RANGE_BYTES, partial=True) == 3


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(api: FakeApi, tmp_path: Path, there: bool) -> None:
    place, link = tmp_path / "disk" / "real.npy", tmp_path / "link.npy"
    place.parent.mkdir()
    if there:
        place.write_bytes(b"old")
    link.symlink_to(place)
    check_target(link)
    save_results(api.client(), finished(), link, print)
    assert link.is_symlink()
    assert np.load(place).shape == (ROWS, 4)
    assert list(place.parent.iterdir()) == [place]
