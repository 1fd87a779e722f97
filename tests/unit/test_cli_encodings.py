"""Texts are decoded as what they are, and said so; or refused before a job exists."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from cli.errors import CliError, UsageError
from cli.files.open_corpus import open_corpus

TEXT = "hello there\nsecond lïne 😀\n"
LINES = TEXT.splitlines()


def texts(path: Path, content: bytes, **options: Any) -> list[str]:
    path.write_bytes(content)
    values = [json.loads(line) for line in open_corpus(path, **options).lines()]
    return [value["text"] if isinstance(value, dict) else value for value in values]


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("has_mark", [True, False])
def test_wide_encodings_are_found_and_said_aloud(tmp_path: Path, name: str, has_mark: bool) -> None:
    path = tmp_path / "t.txt"
    mark = getattr(codecs, f"BOM_{name.upper().replace('-', '', 1).replace('-', '_')}")
    path.write_bytes((mark if has_mark else b"") + TEXT.encode(name))
    corpus = open_corpus(path)
    assert [json.loads(line) for line in corpus.lines()] == LINES
    assert any(name.upper() in note for note in corpus.notes)


def test_the_case_of_the_report(tmp_path: Path) -> None:
    assert texts(tmp_path / "t.txt", "hello there\nsecond line\n".encode("utf-16-le")) == ["hello there", "second line"]


@pytest.mark.parametrize("name", ["utf-16", "utf-16-le", "cp1252", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "txt"])
def test_every_format_in_every_encoding(tmp_path: Path, ending: str, name: str) -> None:
    content = {
        "csv": 'id,text\n1,"café, noir"\n2,thé\n',
        "jsonl": '{"id":1,"text":"café, noir"}\n{"id":2,"text":"thé"}\n',
        "json": '[\n {"id":1,"text":"café, noir"},\n {"id":2,"text":"thé"}\n]\n',
        "txt": "café, noir\nthé\n",
    }[ending]
    options = {"encoding": "cp1252"} if name == "cp1252" else {}
    assert texts(tmp_path / f"t.{ending}", content.encode(name), **options) == ["café, noir", "thé"]


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_what_is_not_utf8_is_refused_with_its_line(tmp_path: Path, ending: str) -> None:
    with pytest.raises(UsageError, match=r"line 3 is not UTF-8 \(give its --encoding, e.g. cp1252"):
        texts(tmp_path / f"t.{ending}", b"text\ngood\ncaf\xe9\n")


def test_an_encoding_given_is_kept_to(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    assert texts(path, "1 €\n".encode("cp1252"), encoding="CP1252") == ["1 €"]
    assert texts(path, "日本\n".encode("shift_jis"), encoding="shift_jis") == ["日本"]
    assert texts(path, "中文\n".encode("utf-16-be"), encoding="utf-16-be") == ["中文"]
    with pytest.raises(UsageError, match="line 2 is not cp1252"):
        texts(path, b"good\n\x81\n", encoding="cp1252")
    with pytest.raises(UsageError, match="mark of utf-16-le, not of cp1252"):
        texts(path, "x".encode("utf-16"), encoding="cp1252")
    for unknown in ("nope", "rot13", "hex"):
        with pytest.raises(UsageError, match="no encoding is called"):
            texts(path, b"x", encoding=unknown)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a text\nwith a\0NUL\n", "line 2 holds a NUL"),
        (b"a text\n" * 20_000 + b"late\0", "line 20,001 holds a NUL"),
        ("日本\n".encode("iso2022_jp"), "ISO-2022.*--encoding"),
        ("中文字符\n".encode("utf-16-le"), "NUL|not UTF-8"),
        (bytes(range(256)) * 4, "NUL"),
        (b"good\n" + b"\x00\xdc" * 50, "NUL|not utf-16-le"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(CliError, match=says):
        texts(tmp_path / "t.txt", content)


def test_a_utf16_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not utf-16-le"):
        texts(tmp_path / "t.txt", "one\ntwo\n".encode("utf-16")[:-1])
