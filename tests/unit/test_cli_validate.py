"""`embedmill files validate`: the lines that the server's validation would refuse, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.commands.validate_file import FileFault, FileReport, validate_file
from cli.commands.validate_report import print_report
from cli.errors import UsageError

GOOD = b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"text"}}'


def checked(path: Path, content: bytes, max_line_bytes: int = 1 << 20) -> tuple[FileReport, list[FileFault]]:
    path.write_bytes(content)
    faults: list[FileFault] = []
    return validate_file(path, faults.append, max_line_bytes=max_line_bytes), faults


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in.jsonl"


def test_good_lines(path: Path) -> None:
    two = GOOD.replace(b'"text"', b'["a","b"]').replace(b'"m"', b'"n"') % 2
    report, faults = checked(path, b"\xef\xbb\xbf" + GOOD % 1 + b"\r\n\n" + two)
    assert not faults
    assert (report.requests, report.inputs, dict(report.models)) == (2, 3, {"m": 1, "n": 1})


def test_each_bad_line_has_its_number_and_its_reason(path: Path) -> None:
    lines = [
        GOOD % 1,
        b"",
        b"no json",
        GOOD.replace(b"/v1/embeddings", b"/v1/responses") % 2,
        GOOD.replace(b'"model":"m",', b"") % 3,
        GOOD.replace(b'"text"', b"[]") % 4,
        GOOD.replace(b'"text"', b'"' + b"x" * 2000 + b'"') % 5,
        GOOD.replace(b"text", b"\xff") % 6,
        GOOD % 1,
    ]
    report, faults = checked(path, b"\n".join(lines), max_line_bytes=1000)
    assert [(each.line, each.code, each.fails_batch) for each in faults] == [
        (3, "invalid_json_line", True),
        (4, "invalid_url", True),
        (5, "invalid_request", True),
        (6, "empty_array", False),
        (7, "line_too_long", True),
        (8, "invalid_json_line", True),
        (9, "duplicate_custom_id", True),
    ]
    assert "line 1 too" in faults[-1].message
    assert (report.requests, report.bad_lines) == (8, 7)
    assert faults[3].custom_id == "4"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_an_empty_file_is_bad(path: Path, content: bytes) -> None:
    report, [fault] = checked(path, content)
    assert (fault.line, fault.code) == (None, "empty_file")
    assert report.bad_lines == 0 and report.codes


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_report_of_an_empty_file_says_so(
    path: Path, capfd: pytest.CaptureFixture[str], content: bytes, as_json: bool
) -> None:
    path.write_bytes(content)
    assert print_report(path, limit=10, as_json=as_json) == 3
    printed = capfd.readouterr()
    assert "empty_file" in printed.out
    assert "in.jsonl: the file is empty" in printed.err
    assert "good" not in printed.err and "--lenient" not in printed.err


def test_a_packed_file_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="packed with gzip"):
        checked(path, b"\x1f\x8b\x08\0")


def test_repetitions_are_found_among_many_lines(path: Path) -> None:
    lines = [GOOD % (number % 49_990) for number in range(50_000)]
    report, faults = checked(path, b"\n".join(lines))
    assert [(each.line, each.code) for each in faults] == [
        (49_991 + number, "duplicate_custom_id") for number in range(10)
    ]
    assert report.requests == 50_000


def test_the_report_lists_up_to_its_limit_and_counts_all(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path.write_bytes(b"bad\n" * 5 + GOOD % 1)
    assert print_report(path, limit=2, as_json=True) == 3
    printed = capfdbinary.readouterr()
    assert [json.loads(line)["line"] for line in printed.out.splitlines()] == [1, 2]
    said = printed.err.decode()
    assert "3 more bad lines are not listed" in said
    assert "6 requests, 5 bad · 1 input · models: m (1) · 5 × invalid_json_line" in said


def test_a_file_whose_bad_lines_fail_alone_starts_a_batch(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(GOOD.replace(b'"text"', b"[]") % 1 + b"\n" + GOOD % 2)
    assert print_report(path, limit=10, as_json=False) == 3
    printed = capfd.readouterr()
    assert printed.out.startswith("line 1: empty_array: ") and printed.out.endswith("[this line only]\n")
    assert "would fail its validation" not in printed.err


def test_a_good_file_is_exit_code_zero(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(GOOD % 1)
    assert print_report(path, limit=10, as_json=False) == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "1 request, all good · 1 input · models: m (1)" in printed.err
