"""Files in: one record is one line sent, whatever the format and however bad the record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cli.errors import CliError, UsageError
from cli.files.columns import Columns, choose_columns
from cli.files.open_corpus import open_corpus


def sent(path: Path, **options: Any) -> list[bytes]:
    lines = list(open_corpus(path, **options).lines())
    assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
    return [line[:-1] for line in lines]


def decoded(path: Path, **options: Any) -> list[object]:
    return [json.loads(line) for line in sent(path, **options)]


def test_text_lines_end_at_the_line_feed_only(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\u2028still one\x0b\x85\r\n\nthree\rthree\nlast".encode())
    assert decoded(path) == ["one\u2028still one\x0b\x85", "", "three\rthree", "last"]


def test_text_that_is_not_utf8_keeps_its_index_and_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b'good\n"caf\xe9"\ngood')
    assert sent(path, encoding="utf-8") == [b'"good"', b'"\\"caf\xe9\\""', b'"good"']


def test_jsonl_takes_strings_objects_and_tokens(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('"bare"\n{"id": 7, "text": "seven", "other": {"a": 1}}\n[1, 2]\n{"text": "no id"}\n{"id": "x"}')
    assert decoded(path) == ["bare", {"id": "7", "text": "seven"}, [1, 2], {"text": "no id"}, {"id": "x", "text": None}]


def test_bad_jsonl_lines_are_sent_on_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    bad = [b"", b'{"text": "cut', b"\xff\xfe", b'{"text": "' + b"\xe9" + b'"}', b"{}"]
    path.write_bytes(b'{"text": "a"}\n' + b"\n".join(bad) + b'\n{"text": "z"}\n')
    assert sent(path) == [b'{"text":"a"}', *bad, b'{"text":"z"}']


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_quotes_breaks_and_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(mark + b'text,id\n"two\nlines, one cell",a\n,b\n\n"q ""q""",c\n')
    assert decoded(path) == [
        {"id": "a", "text": "two\nlines, one cell"},
        {"id": "b", "text": ""},
        {"text": ""},
        {"id": "c", "text": 'q "q"'},
    ]


def test_csv_that_is_not_utf8_spoils_one_row_only(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_bytes(b"text\ngood\ncaf\xe9\ngood\n")
    assert sent(path, encoding="utf-8") == [b'{"text":"good"}', b'{"text":"caf\xe9"}', b'{"text":"good"}']


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.ndjson.gz", "t.txt.gz", "t.csv.gz"])
def test_gzip_with_several_members(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    parts = {"jsonl": ['{"text":"a"}\n', '{"text":"b"}\n'], "csv": ["text\na\n", "b\n"], "txt": ["a\n", "b\n"]}
    parts["ndjson"] = parts["jsonl"]
    path.write_bytes(b"".join(gzip.compress(part.encode()) for part in parts[name.split(".")[1]]))
    texts = [value["text"] if isinstance(value, dict) else value for value in decoded(path)]
    assert texts == ["a", "b"]


@pytest.mark.parametrize("broken", [b"plain", gzip.compress(b"text\n" * 9999, mtime=0)[:-20]], ids=["plain", "cut"])
def test_a_broken_gzip_file_is_an_error_of_the_file(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "t.txt.gz"
    path.write_bytes(broken)
    with pytest.raises(CliError, match="not a whole gzip file"):
        sent(path)


def test_parquet_reads_two_columns_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = 2500
    texts = [None if i == 7 else f"text {i}" for i in range(rows)]
    pa.parquet.write_table(pa.table({"id": range(rows), "body": texts, "n": [1.0] * rows}), path)
    lines = decoded(path)
    assert len(lines) == rows
    assert lines[7] == {"id": "7", "text": None}
    assert lines[2499] == {"id": "2499", "text": "text 2499"}


def test_a_corpus_can_be_sent_again_and_knows_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("line\n" * 100_000)
    corpus = open_corpus(path)
    assert list(corpus.lines()) == list(corpus.lines())
    assert corpus.fraction_read() == 1.0
    lines = corpus.lines()
    for _ in range(60_000):
        next(lines)
    assert 0.5 < corpus.fraction_read() < 1.0


@pytest.mark.parametrize(
    ("found", "options", "chosen"),
    [
        ({"text": True, "other": True}, {}, Columns("text", None)),
        ({"id": True, "summary": True}, {}, Columns("summary", "id")),
        ({"id": False, "n": False, "summary": True}, {}, Columns("summary", "id")),
        ({"a": True, "b": True}, {"text": "b", "id": "a"}, Columns("b", "a")),
        ({"id": True}, {}, Columns("id", None)),
        ({"id": True, "text": True}, {"text": "id"}, Columns("id", None)),
        ({"text": True, "body": True}, {"id": "text"}, Columns("body", "text")),
    ],
)
def test_column_choice(found: dict[str, bool], options: dict[str, str], chosen: Columns) -> None:
    text, id_column = options.get("text"), options.get("id")
    assert choose_columns(found, "f.csv", text=text, id=id_column) == chosen


@pytest.mark.parametrize(
    ("found", "text", "says"),
    [
        ({"title": True, "body": True}, None, "several columns of text.*--text-column.*title, body"),
        ({"n": False}, None, "no column of text.*columns: n"),
        ({"title": True}, "body", "no column 'body'.*--text-column must be one of: title"),
    ],
)
def test_a_wrong_column_names_the_columns_there_are(found: dict[str, bool], text: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        choose_columns(found, "f.csv", text=text, id=None)


@pytest.mark.parametrize("name", ["t.docx", "t", "t.parquet.gz", "missing.txt", "."])
def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith((".", "missing")):
        path.write_bytes(b"x")
    with pytest.raises(UsageError):
        open_corpus(path)


def test_a_broken_parquet_file_is_one_readable_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(CliError, match="not readable as Parquet"):
        open_corpus(path)
