"""`embedmill stream` against the API in memory: order, errors in their places, and files that a run goes on with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.__main__ import exit_code_of
from cli.commands.stream_lines import StreamRequest, stream_lines
from cli.files.line_output import FileLines
from tests.cli_fake_api import JOB_ID, FakeApi

TEXTS = b"".join(b'{"id":"%d","text":"text %d"}\n' % (number, number) for number in range(20))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeApi:
    monkeypatch.chdir(tmp_path)
    return FakeApi()


def streamed(api: FakeApi, stdin: bytes, **options: Any) -> int:
    """The exit code of `embedmill stream`."""
    return exit_code_of(lambda: stream_lines(StreamRequest(**options), api.client(), io.BytesIO(stdin)))


def undisturbed(api: FakeApi, stdin: bytes) -> bytes:
    """What a run without disturbances writes."""
    fresh = FakeApi()
    assert streamed(fresh, stdin, target=Path("undisturbed.jsonl")) in (0, 3)
    return Path("undisturbed.jsonl").read_bytes()


def test_a_line_in_is_a_line_out_in_order(api: FakeApi, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert streamed(api, b'"one"\n{"id": "a", "text": "two"}\n') == 0
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [(line["index"], line["id"]) for line in lines] == [(0, None), (1, "a")]
    assert api.bodies == [b'"one"\n{"id": "a", "text": "two"}\n']  # as they are


def test_a_bad_line_has_its_error_in_its_place(api: FakeApi, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert streamed(api, b'"one"\nbad\n"three"\n') == 3
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False]


@pytest.mark.parametrize("stdin", [b"", b"\n", b" \r\n\t\n"])
def test_nothing_in_is_nothing_out(api: FakeApi, stdin: bytes, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert streamed(api, stdin) == 0
    assert capsysbinary.readouterr().out == b""
    assert not api.requests


def test_options_are_those_of_the_job(api: FakeApi) -> None:
    assert streamed(api, TEXTS, dimensions=4, truncate="end", encoding="base64", target=Path("o")) == 0
    [posted] = [each for each in api.requests if each.method == "POST"]
    assert dict(posted.url.params) == {"model": "tiny", "dimensions": "4", "truncate": "end"}
    assert {each.url.params["encoding_format"] for each in api.requests if each.url.path.endswith("results")} == {
        "base64"
    }


def test_lines_are_written_up_to_the_first_gap_while_the_job_runs(api: FakeApi) -> None:
    """Results behind an input without an outcome wait for it, and none is lost or doubled."""
    expected = undisturbed(api, TEXTS)
    api.pending = {3, 4, 12}
    seen: list[int] = []

    def on_request(request: httpx.Request) -> None:
        if request.url.path.endswith(JOB_ID) and "if-none-match" in request.headers:
            seen.append(Path("out.jsonl").read_bytes().count(b"\n"))
            api.pending.clear()

    api.on_request = on_request
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0
    assert seen[0] == 3
    assert Path("out.jsonl").read_bytes() == expected
    assert not Path("out.jsonl.job").exists()


@pytest.mark.parametrize("cut", [0, 1, 60, 61, 200, 700])
def test_a_file_is_gone_on_with_after_its_last_whole_line(api: FakeApi, cut: int) -> None:
    expected = undisturbed(api, TEXTS)
    Path("out.jsonl").write_bytes(expected[:cut])
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0
    assert Path("out.jsonl").read_bytes() == expected


def test_a_whole_file_stays_as_it_is(api: FakeApi) -> None:
    expected = undisturbed(api, TEXTS)
    Path("out.jsonl").write_bytes(expected)
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0
    assert Path("out.jsonl").read_bytes() == expected


@pytest.mark.parametrize(
    "content",
    [
        b"precious\n",
        b"precious, without a line feed",
        b'{"index":1,"id":null}\n',
        b'{"index":0,"id":null}\n{"index":2,"id":null}\n',
        b'{"index":0,"id":null}\nprecious',
    ],
)
def test_a_file_of_something_else_is_refused_before_anything_is_sent(api: FakeApi, content: bytes) -> None:
    Path("out.jsonl").write_bytes(content)
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 2
    assert Path("out.jsonl").read_bytes() == content
    assert not api.bodies


def test_a_file_with_results_of_another_job_is_refused(api: FakeApi) -> None:
    content = b'{"index":0,"id":"0","embedding":[0.5]}\n'
    Path("out.jsonl").write_bytes(content)
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 2
    assert Path("out.jsonl").read_bytes() == content


def interrupted(api: FakeApi, raising: type[BaseException], stdin: bytes, target: str) -> int:
    """The exit code of a run that ends at its second poll, when half of the results have been written."""
    seen = []

    def on_request(request: httpx.Request) -> None:
        seen.append(request)
        if sum(each.url.path.endswith(JOB_ID) for each in seen) == 2:
            raise raising

    api.on_request = on_request
    api.pending = set(range(10, 20))
    code = streamed(api, stdin, target=Path(target))
    api.on_request = lambda request: None
    api.pending = set()
    return code


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    expected = undisturbed(api, TEXTS)
    assert interrupted(api, KeyboardInterrupt, TEXTS, "out.jsonl") == 1
    assert f"`embedmill stream --resume {JOB_ID} --out out.jsonl`" in capfd.readouterr().err
    assert Path("out.jsonl").read_bytes() == b"".join(expected.splitlines(keepends=True)[:10])
    # The job is known from the note beside the file: the input is not sent again.
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0
    assert len(api.bodies) == 1
    assert Path("out.jsonl").read_bytes() == expected
    assert not Path("out.jsonl.job").exists()


def test_resume_needs_no_input(api: FakeApi) -> None:
    expected = undisturbed(api, TEXTS)
    assert interrupted(api, KeyboardInterrupt, TEXTS, "out.jsonl") == 1
    assert streamed(api, b"", target=Path("out.jsonl"), resume=JOB_ID) == 0
    assert Path("out.jsonl").read_bytes() == expected


def test_another_input_into_a_file_that_was_begun_is_refused(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    assert interrupted(api, KeyboardInterrupt, TEXTS, "out.jsonl") == 1
    before = Path("out.jsonl").read_bytes()
    assert streamed(api, TEXTS + b'"more"\n', target=Path("out.jsonl")) == 2
    assert "is being written from another input, or with other options" in capfd.readouterr().err
    assert Path("out.jsonl").read_bytes() == before
    assert len(api.bodies) == 1


def test_new_starts_another_job_and_wants_a_new_file(api: FakeApi) -> None:
    assert streamed(api, TEXTS, target=Path("a.jsonl")) == 0
    assert streamed(api, TEXTS, target=Path("a.jsonl"), new=True) == 2
    assert streamed(api, TEXTS, target=Path("b.jsonl"), new=True) == 0
    keys = [each.headers["idempotency-key"] for each in api.requests if each.method == "POST"]
    assert len(set(keys)) == len(keys) == 2


def test_two_runs_do_not_write_to_one_file(api: FakeApi, capfd: pytest.CaptureFixture[str]) -> None:
    first = FileLines(Path("out.jsonl"))
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 1
    assert "another process writes to out.jsonl" in capfd.readouterr().err
    first.close()
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0


def test_a_server_that_is_away_for_a_while_costs_no_line(api: FakeApi) -> None:
    expected = undisturbed(api, TEXTS)
    faults: list[Callable[[], None]] = []

    def on_request(request: httpx.Request) -> None:
        if request.url.path.endswith("results") and len(faults) < 3:
            faults.append(lambda: None)
            raise httpx.RemoteProtocolError("the connection broke")

    api.on_request = on_request
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 0
    assert len(faults) == 3
    assert Path("out.jsonl").read_bytes() == expected


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_job_that_does_not_end_well_is_exit_code_one(
    api: FakeApi, status: str, capfd: pytest.CaptureFixture[str]
) -> None:
    api.final_status, api.pending = status, {5}
    assert streamed(api, TEXTS, target=Path("out.jsonl")) == 1
    assert f"ended as {status}: 5 of 20 lines are written" in capfd.readouterr().err


def test_an_input_without_a_usable_line_has_its_errors_all_the_same(api: FakeApi) -> None:
    refusal = {"message": "The corpus has no usable input: no.", "code": "no_usable_input"}
    api.on_request = lambda request: (
        api.faults.append(httpx.Response(400, json={"error": refusal})) if request.method == "POST" else None
    )
    stdin = b'bad\n\n\n{"id":"x","text":null}\n""\n"' + b"\xff" + b'"\n[]'
    assert streamed(api, stdin, target=Path("out.jsonl")) == 3
    lines = [json.loads(line) for line in Path("out.jsonl").read_bytes().splitlines()]
    assert [line["index"] for line in lines] == list(range(7))
    assert [line["error"]["code"] for line in lines] == [
        *["invalid_json"] * 3,
        "invalid_input",
        "empty_input",
        "invalid_json",
        "empty_input",
    ]
    assert lines[3]["id"] == "x"
    again = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(again[:150])
    assert streamed(api, stdin, target=Path("out.jsonl")) == 3
    assert Path("out.jsonl").read_bytes() == again


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff\xfea\0"])
def test_what_is_no_lines_of_utf8_is_refused(api: FakeApi, start: bytes) -> None:
    assert streamed(api, start + b"...") == 2
    assert not api.requests


def test_stdin_is_read_from_where_it_stands(api: FakeApi, tmp_path: Path) -> None:
    """As of a shell's `{ read header; embedmill stream; } < file`."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"header\n" + TEXTS)
    with path.open("rb", buffering=0) as stdin:
        stdin.seek(7)
        request = StreamRequest(target=Path("out.jsonl"))
        assert exit_code_of(lambda: stream_lines(request, api.client(), stdin)) == 0
    assert api.bodies == [TEXTS]
