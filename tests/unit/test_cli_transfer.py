"""Files on their way to the server and back: in parts, again after a break, and never half."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import pytest

from cli.client.batches_client import Batches
from cli.client.file_types import StoredFile
from cli.client.files_client import Files
from cli.commands.batch_run import parse_metadata
from cli.commands.file_transfer import download_file, upload_file
from cli.commands.options import seconds_of
from cli.errors import CliError, NotFound, UsageError
from cli.output.amounts import AmountLines, RateMeter, amount_text, bytes_text, count_text
from cli.output.follow_batch import follow_batch
from cli.output.terminal import TolerantConsole
from tests.cli_fake_files import FakeFilesApi, form_of

CONTENT = b"".join(b'{"custom_id":"%d"}\n' % number for number in range(1000))
BROKEN = httpx.RemoteProtocolError("the connection broke")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFilesApi:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_bytes(CONTENT)
    return FakeFilesApi()


def no_progress() -> AmountLines:
    return AmountLines(TolerantConsole(file=io.StringIO()))


def uploaded(api: FakeFilesApi, name: str = "in.jsonl", purpose: str = "batch", **options: int | None) -> StoredFile:
    part_bytes = options.pop("part_bytes", None) or 1 << 30
    expires_after_s = options.pop("expires_after_s", None)
    files = Files(api.client())
    return upload_file(files, Path(name), purpose, expires_after_s, no_progress(), part_bytes=part_bytes)


def test_a_small_file_is_one_request(api: FakeFilesApi) -> None:
    stored = uploaded(api, expires_after_s=7200)
    assert api.contents[stored.id] == CONTENT
    first, request = api.requests
    assert first.method == "GET"  # a wrong address or key is found before anything is sent
    form = form_of(request)
    assert form["file"][0] == "in.jsonl"
    assert form["purpose"][1] == b"batch"
    assert (form["expires_after[anchor]"][1], form["expires_after[seconds]"][1]) == (b"created_at", b"7200")
    assert list(form)[-1] == "file"  # so that the server knows all about it before its first byte
    assert int(request.headers["content-length"]) > len(CONTENT)


@pytest.mark.parametrize("name", ["Ünïcode «a».jsonl", 'quote".jsonl', "line\nfeed.jsonl", "a b.jsonl"])
def test_odd_names_arrive(api: FakeFilesApi, name: str) -> None:
    Path(name).write_bytes(CONTENT)
    stored = uploaded(api, name)
    assert api.contents[stored.id] == CONTENT


def test_a_broken_upload_is_sent_again_and_makes_one_file(api: FakeFilesApi) -> None:
    faults: list[httpx.Response | Exception] = [BROKEN, httpx.Response(503, json={"error": {"message": "busy"}})]
    api.on_request = lambda request: api.faults.append(faults.pop(0)) if faults and request.method == "POST" else None
    stored = uploaded(api)
    assert api.contents[stored.id] == CONTENT
    assert len(api.files) == 1
    assert len({each.headers["idempotency-key"] for each in api.requests if each.method == "POST"}) == 1


@pytest.mark.parametrize("part_bytes", [1, 7, len(CONTENT) // 3, len(CONTENT) - 1])
def test_a_large_file_goes_in_parts(api: FakeFilesApi, part_bytes: int) -> None:
    content = CONTENT[: max(20, 20 * part_bytes)]
    Path("in.jsonl").write_bytes(content)
    stored = uploaded(api, part_bytes=part_bytes, expires_after_s=3600)
    assert api.contents[stored.id] == content
    assert all(len(part) <= part_bytes for part in api.parts.values())
    [upload] = api.uploads.values()
    assert upload["declared"]["expires_after"] == {"anchor": "created_at", "seconds": 3600}


def test_a_part_that_breaks_is_sent_again(api: FakeFilesApi) -> None:
    api.on_request = lambda request: (
        api.faults.append(BROKEN) if request.url.path.endswith("parts") and len(api.requests) in (3, 6) else None
    )
    stored = uploaded(api, part_bytes=5000)
    assert api.contents[stored.id] == CONTENT
    assert sum(each.url.path.endswith("parts") for each in api.requests) == -(-len(CONTENT) // 5000) + 2


def test_an_upload_that_fails_is_cancelled(api: FakeFilesApi) -> None:
    refusal = httpx.Response(413, json={"error": {"message": "too large"}})
    api.on_request = lambda request: api.faults.append(refusal) if len(api.requests) == 4 else None
    with pytest.raises(CliError, match="too large"):
        uploaded(api, part_bytes=5000)
    assert [each["status"] for each in api.uploads.values()] == ["cancelled"]
    assert not api.files


def test_a_file_that_changes_while_it_is_sent_is_no_file(api: FakeFilesApi) -> None:
    def on_request(request: httpx.Request) -> None:
        if len(api.requests) == 3:
            Path("in.jsonl").write_bytes(bytes(len(CONTENT)))

    api.on_request = on_request
    with pytest.raises(CliError, match="another MD5"):
        uploaded(api, part_bytes=5000)
    assert not api.files


@pytest.mark.parametrize(
    ("name", "error"), [("nope.jsonl", NotFound), ("folder.jsonl", UsageError), ("corpus.csv", UsageError)]
)
def test_what_cannot_be_sent_is_refused_before_it_is(api: FakeFilesApi, name: str, error: type[CliError]) -> None:
    Path("folder.jsonl").mkdir()
    Path("corpus.csv").write_text("text\na\n")
    with pytest.raises(error):
        uploaded(api, name)
    assert not api.requests
    assert name != "corpus.csv" or uploaded(api, name, "user_data").bytes == 7


@pytest.mark.parametrize("ignores_range", [False, True])
@pytest.mark.parametrize("breaks_after", [[], [0], [1, 100, 5000], [len(CONTENT)]])
def test_a_download_goes_on_after_a_break(api: FakeFilesApi, breaks_after: list[int], ignores_range: bool) -> None:
    file_id = api.add_file(CONTENT, "out.jsonl")
    api.breaks_after, api.ignores_range = breaks_after, ignores_range
    files = Files(api.client())
    download_file(files, files.get(file_id), Path("copy.jsonl"), no_progress())
    assert Path("copy.jsonl").read_bytes() == CONTENT
    assert sorted(each.name for each in Path.cwd().iterdir()) == ["copy.jsonl", "in.jsonl"]


def test_an_empty_file_is_fetched_without_a_request_for_its_bytes(api: FakeFilesApi) -> None:
    files = Files(api.client())
    download_file(files, files.get(api.add_file(b"", "empty")), Path("copy"), no_progress())
    assert Path("copy").read_bytes() == b""


def test_a_download_that_comes_short_leaves_no_file(api: FakeFilesApi) -> None:
    file_id = api.add_file(CONTENT, "out.jsonl")
    api.contents[file_id] = CONTENT[:-1]
    files = Files(api.client())
    with pytest.raises(CliError, match="came"):
        download_file(files, files.get(file_id), Path("copy.jsonl"), no_progress())
    assert not Path("copy.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("3600", 3600), ("90m", 5400), ("24h", 86_400), ("7d", 604_800), ("5s", 5), (None, None)]
)
def test_times(text: str | None, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1h", "1.5h", "1w", "soon", "1e9", "9" * 12])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        seconds_of(text)


def test_amounts_as_text() -> None:
    assert amount_text(0, 1000, None, size=bytes_text) == "0 bytes/1 kB · 0%"
    assert amount_text(500, 1000, 100, size=count_text) == "500/1,000 · 50% · 100/s · eta 5 s"
    assert amount_text(999, 1000, 1, size=count_text).split(" · ")[1] == "99%"  # 100% is all of it
    assert amount_text(0, 0, None, size=bytes_text) == "0 bytes/0 bytes · 100%"
    assert [bytes_text(size) for size in (999, 1000, 999_600, 12_345_678, 8.6e9)] == [
        "999 bytes",
        "1 kB",
        "1 MB",
        "12.3 MB",
        "8.6 GB",
    ]


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    meter = RateMeter(clock=lambda: now[0])
    assert meter.rate(0) is None
    now[0] = 10.0
    assert meter.rate(100) == 10.0
    for second in range(11, 41):
        now[0] = second
        rate = meter.rate(100 + (second - 10) * 1000)
    assert rate == pytest.approx(1000.0)


def test_lines_come_now_and_then() -> None:
    now, written = [0.0], io.StringIO()
    lines = AmountLines(TolerantConsole(file=written, width=200), clock=lambda: now[0])
    for done in range(100):
        now[0] += 0.5
        lines.show("sending", done / 100, f"{done}%")
    assert 9 <= len(written.getvalue().splitlines()) <= 12


def test_what_is_done_within_a_second_needs_no_line() -> None:
    now, written = [0.0], io.StringIO()
    lines = AmountLines(TolerantConsole(file=written, width=200), clock=lambda: now[0])
    for done in range(9):
        now[0] += 0.1
        lines.show("sending", done / 9, "")
    assert written.getvalue() == ""


def test_ctrl_c_leaves_a_batch_and_says_how_to_come_back(api: FakeFilesApi) -> None:
    batches = Batches(api.client())
    batch = batches.create(api.add_file(CONTENT, "in.jsonl"), "24h", {})

    def on_request(request: httpx.Request) -> None:
        if len(api.requests) == 3:
            raise KeyboardInterrupt

    api.on_request = on_request
    with pytest.raises(CliError, match=f"`embedmill batches wait {batch.id}`"):
        follow_batch(batches, batch.id, no_progress())
    assert api.batch["status"] != "cancelling"


def test_tries_of_one_creation_make_one_batch(api: FakeFilesApi) -> None:
    api.faults = [BROKEN, httpx.Response(409, json={"error": {"message": "in flight"}}, headers={"retry-after": "1"})]
    Batches(api.client()).create(api.add_file(CONTENT, "in.jsonl"), "24h", {"a": "b"})
    assert len({each.headers["idempotency-key"] for each in api.requests}) == 1
    assert len(api.requests) == 3


@pytest.mark.parametrize("pairs", [["a"], ["=b"], ["a=1", "a=2"]])
def test_what_is_no_metadata(pairs: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_metadata(pairs)


def test_metadata_may_hold_anything_behind_its_first_equals_sign() -> None:
    assert parse_metadata(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
