"""A file is read for what it holds, whatever its name; what is no corpus is refused by its kind."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from cli.errors import CliError, UsageError
from cli.files.open_corpus import open_corpus
from cli.files.source import Source
from cli.files.text_corpus import json_array

PARQUET = io.BytesIO()
pa.parquet.write_table(pa.table({"id": [1], "text": ["a"]}), PARQUET)
ARROW = io.BytesIO()
pa.feather.write_feather(pa.table({"text": ["a"]}), ARROW)
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as packed:
    packed.writestr("xl/workbook.xml", "<x/>")


def read(path: Path, content: bytes | None = None, **options: Any) -> list[Any]:
    if content is not None:
        path.write_bytes(content)
    values = [json.loads(line) for line in open_corpus(path, **options).lines()]
    return [value["text"] if isinstance(value, dict) else value for value in values]


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.jsonl", "t.data", "t"])
def test_parquet_under_another_name(tmp_path: Path, name: str) -> None:
    if name == "t.data":
        with pytest.raises(UsageError, match="--format"):
            read(tmp_path / name, PARQUET.getvalue())
        return
    assert read(tmp_path / name, PARQUET.getvalue()) == ["a"]


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.csv.zst"])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_packing_is_known_by_content(tmp_path: Path, name: str, compression: str) -> None:
    plain = b"id,text\n1,a\n2,b\n"
    packed = gzip.compress(plain) if compression == "gzip" else pa.compress(plain, codec="zstd", asbytes=True)
    assert read(tmp_path / name, packed) == ["a", "b"]
    assert read(tmp_path / name, packed + packed[:0]) == ["a", "b"]
    with pytest.raises(CliError, match=f"not a whole {compression} file"):
        read(tmp_path / name, packed[:-4])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (ZIP.getvalue(), "a zip archive or a spreadsheet"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an old Excel"),
        (b"%PDF-1.7\n", "a PDF"),
        (ARROW.getvalue(), "an Arrow file"),
        (b"SQLite format 3\0" + bytes(80), "an SQLite database"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "an HTML page"),
        (b"\n  <html>\n", "an HTML page"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.jsonl"])
def test_what_is_no_corpus_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(tmp_path / name, content)


def test_html_may_be_meant(tmp_path: Path) -> None:
    assert read(tmp_path / "t.txt", b"<html>one</html>\n<html>two</html>\n", format="txt")[1] == "<html>two</html>"


def test_json_objects_in_a_text_file_are_asked_about(tmp_path: Path) -> None:
    content = b'{"text": "a"}\n\n{"text": "b"}\n'
    with pytest.raises(UsageError, match="--format jsonl, or --format txt"):
        read(tmp_path / "t.txt", content)
    assert read(tmp_path / "t.txt", content.replace(b"\n\n", b"\n"), format="jsonl") == ["a", "b"]
    assert read(tmp_path / "t.txt", content, format="txt")[0] == '{"text": "a"}'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('[\n  {"text": "a", "id": 1},\n  {"text": "b"}\n]\n', ["a", "b"]),
        ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ("[1, 2]\n[3]\n", [[1, 2], [3]]),
        ("[[1, 2], [3]]", [[1, 2], [3]]),
        ('["a", null]', ["a", None]),  # what is no text is the error of its own row
        ('[null, "a"]', [None, "a"]),
        ('["a", 3, true]', ["a", 3, True]),
    ],
)
def test_json_as_an_array_or_as_lines(tmp_path: Path, content: str, expected: list[Any]) -> None:
    assert read(tmp_path / "t.json", content.encode()) == expected


def test_a_json_array_too_large_to_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(["text"] * 1000))
    with pytest.raises(UsageError, match="one record a line"):
        json_array(Source(path), largest_bytes=1000)


def test_javascript_and_python_json_keep_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"id":4,"text":"d","score":NaN}\n{"id":5,"text":"x\\ud83d"}\n{"id":123456789012345678901,"text":"e"}\n'
    )
    lines = list(open_corpus(path).lines())
    assert lines[0] == b'{"id":"4","text":"d"}\n'
    assert lines[1] == b'{"id":"5","text":"x\\ud83d"}\n'.replace(b'"text":"', b'"text":"')
    assert lines[2] == b'{"id":"123456789012345678901","text":"e"}\n'


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_blank_lines_at_the_end_are_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'"a"\n\n"b"\n\n\r\n\n')
    assert len(list(open_corpus(path, format=name[2:]).lines())) == 3


@pytest.mark.parametrize("name", ["t.txt", "t.jsonl"])
def test_a_line_without_end_is_an_error_of_its_own(tmp_path: Path, name: str) -> None:
    """A line above 8 Mi characters is sent so far, and so that nobody takes it for a text."""
    path = tmp_path / name
    path.write_bytes(b'"a"\n"' + b"x" * (20 * 1024 * 1024) + b'"\n"b"\n')
    lines = list(open_corpus(path, format=name[2:]).lines())
    assert len(lines) == 3
    assert max(map(len, lines)) <= 8 * 1024 * 1024 + 10
    with pytest.raises(ValueError, match=r"Unterminated|Invalid"):
        json.loads(lines[1])
    assert b"b" in lines[2]


PIPED: list[tuple[bytes, dict[str, Any], list[str]]] = [
    (b"a\nb\n", {"format": "txt"}, ["a", "b"]),
    (b'{"text":"a"}\n', {}, ["a"]),
    (b"id\ttext\n1\ta\n", {"format": "csv"}, ["a"]),
    (gzip.compress(b"a\nb\n", mtime=0), {"format": "txt"}, ["a", "b"]),
    ("a\nb\n".encode("utf-16"), {"format": "txt"}, ["a", "b"]),
    (PARQUET.getvalue(), {}, ["a"]),
]


@pytest.mark.parametrize(("content", "options", "expected"), PIPED)
def test_pipes_are_read_like_files_and_can_be_sent_again(
    tmp_path: Path, content: bytes, options: dict[str, Any], expected: list[str]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(content,))
    writer.start()
    corpus = open_corpus(path, **options)
    writer.join()
    first, second = list(corpus.lines()), list(corpus.lines())
    assert first == second
    values = [json.loads(line) for line in first]
    assert [value["text"] if isinstance(value, dict) else value for value in values] == expected
