"""CSV is read for certain or refused: the right text, or an error that names the line; never another text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError, UsageError
from cli.files.open_corpus import open_corpus


def rows(path: Path, content: str | bytes, **options: Any) -> list[tuple[str | None, str]]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lines = [json.loads(line) for line in open_corpus(path, **options).lines()]
    return [(line.get("id"), line["text"]) for line in lines]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("others", ["Hello", "semi-colon"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, others: str) -> None:
    unquoted = {",": "a; b", ";": "Hello, world", "\t": "Hello, world; it", "|": "Hello, world"}[delimiter]
    content = f"id{delimiter}text\n1{delimiter}{unquoted}\n2{delimiter}{others}\n"
    assert rows(tmp_path / "t.csv", content) == [("1", unquoted), ("2", others)]


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ('"id";"text"\n"1";"a;b, c"\n', {}, [("1", "a;b, c")]),
        ("id:text\n1:a, b\n", {"delimiter": ":"}, [("1", "a, b")]),
        ("id\ttext\n1\ta\n", {"delimiter": "tab"}, [("1", "a")]),
        ("sep=;\nid;text\n1;a, b\n", {}, [("1", "a, b")]),
        ("sep=^\r\nid^text\r\n1^a, b\r\n", {}, [("1", "a, b")]),
        ('id,"a;text",text\n1,x,y\n', {}, [("1", "y")]),
        ("text\njust; one | column\n", {}, [(None, "just; one | column")]),
        ("id , text\n1,a\n", {}, [("1", "a")]),
        (",text\n0,a\n1,b\n", {}, [(None, "a"), (None, "b")]),
        ("id,text\r1,a\r2,b\r", {}, [("1", "a"), ("2", "b")]),
        ('id,text\n1,"a\r\nb\rc"\n', {}, [("1", "a\r\nb\rc")]),
        ("a,b,b\nx,1,2\n", {"text_column": "a"}, [(None, "x")]),
    ],
)
def test_what_is_read(tmp_path: Path, content: str, options: dict[str, Any], expected: list[Any]) -> None:
    assert rows(tmp_path / "t.csv", content, **options) == expected


def test_the_ending_tsv_means_a_tab(tmp_path: Path) -> None:
    assert rows(tmp_path / "t.tsv", "id\ttext\n1\ta, b\n") == [("1", "a, b")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name, title;body\nx, y;z\n", "delimiter may be a comma or a semicolon.*--delimiter"),
        ("id,text;x\n", "delimiter may be a comma or a semicolon"),
        ("id,text,text\n1,a,b\n", "2 columns called 'text'"),
        ("id,id,text\n1,2,a\n", "2 columns called 'id'"),
        ("", "no header row"),
        (",,\n1,2,3\n", "no header row"),
        ("\nid,text\n1,a\n", "no header row.*line 1"),
        ("Hello there\nA second text\n", "names no column 'text'.*--format txt"),
        ("id:text\n1:Hello\n", "names no column 'text'.*--delimiter"),
        ("text^id\nHello^1\n", "names no column 'text'"),
        ("1,Hello\n2,World\n", "names no column 'text'"),
        ('{"text": "a"}\n{"text": "b"}\n', "names no column 'text'"),
    ],
)
def test_a_header_that_does_not_tell_is_refused(tmp_path: Path, content: str, says: str) -> None:
    """No option mends a file without a header: then it is the file that must change."""
    with pytest.raises(CliError, match=says) as raised:
        rows(tmp_path / "t.csv", content)
    assert isinstance(raised.value, UsageError) == ("no header row" not in says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('id,text\n1,fine\n2,"never closed\n3,third\n4,fourth\n', "line 3 opens a quote that is never closed"),
        ('id,text\n1,"two\nlines"\n2,"never\n', "line 4 opens a quote that is never closed"),
        ('text,id\n"two\nlines","and\nnever\n', "line 3 opens a quote that is never closed"),
        ('id,text\n1,"open\n2,"again\n', "line 2 opens a quote that other text follows"),
        ('id,text\n1,"he said \\"hi\\""\n', "line 2 opens a quote that other text follows"),
        ('id,text\n1,"closed" too soon\n', "line 2 opens a quote that other text follows"),
        ('id,text\n1, "Hello"\n', "line 2 has a space before a quote"),
        ("id,text\n1,Hello, world\n", "line 2 has 3 fields where the header names 2"),
        ('id,text\n1,"a\nb"\n2\n', "line 4 has 1 field where"),
        ("text\nHello, world\n", "line 2 has 2 fields where the header names 1"),
        ("id,text\n1,a\rb\n", "line 2 has a carriage return"),
        ("id,text\n1,a\n2,nul\0l\n", "line 3 holds a NUL"),
    ],
)
def test_a_row_out_of_place_names_its_line(tmp_path: Path, content: str, says: str) -> None:
    with pytest.raises(CliError, match=says):
        rows(tmp_path / "t.csv", content)


def test_blank_rows_are_errors_between_others_and_nothing_at_the_end(tmp_path: Path) -> None:
    expected = [("1", "a"), (None, ""), (None, ""), ("2", "b")]
    assert rows(tmp_path / "t.csv", 'id,text\n1,a\n\n,\n2,b\n\n,\n"",""\n') == expected


def test_a_row_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """Nothing longer than 8 Mi characters is held."""
    too_long = 8 * 1024 * 1024 + 1
    with pytest.raises(CliError, match=r"line 2 begins a row longer than 8,388,608 characters"):
        rows(tmp_path / "t.csv", "id,text\n1," + "x" * too_long + "\n2,b\n")
    with pytest.raises(CliError, match=r"line 3 opens a quote that is never closed"):
        rows(tmp_path / "t.csv", 'id,text\n1,a\n2,"b\n' + ("3," + "c" * 998 + "\n") * (too_long // 1000 + 1))


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n"])
def test_what_no_delimiter_can_be(tmp_path: Path, delimiter: str) -> None:
    with pytest.raises(UsageError, match="cannot be a delimiter"):
        rows(tmp_path / "t.csv", "id,text\n1,a\n", delimiter=delimiter)
