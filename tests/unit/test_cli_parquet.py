"""Parquet: every type that holds text is embedded as its text, and no other type is taken for one."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cli.errors import CliError, Failure, UsageError
from cli.files.open_corpus import open_corpus

WORDS = ["alpha", "beta", "gamma"]


def lines(path: Path, table: pa.Table, **options: Any) -> list[bytes]:
    pa.parquet.write_table(table, path)
    return list(open_corpus(path, **options).lines())


def rows(path: Path, table: pa.Table, **options: Any) -> list[tuple[str | None, Any]]:
    values = [json.loads(line) for line in lines(path, table, **options)]
    return [(value.get("id"), value["text"]) for value in values]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(WORDS),
        pa.array(WORDS, pa.large_string()),
        pa.array(WORDS, pa.string_view()),
        pa.array(WORDS).dictionary_encode(),
        pa.array([word.encode() for word in WORDS]),
        pa.array([word.encode() for word in WORDS], pa.large_binary()),
        pa.array([word.encode() for word in WORDS], pa.binary_view()),
        pa.array([word.encode() for word in WORDS]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["text", "body"])
def test_every_layout_of_text_is_its_text(tmp_path: Path, column: pa.Array, name: str) -> None:
    table = pa.table({"id": [1, 2, 3], name: column})
    assert rows(tmp_path / "t.parquet", table) == list(zip("123", WORDS, strict=True))


def test_bytes_that_are_no_utf8_spoil_their_row_only(tmp_path: Path) -> None:
    for kind in (pa.binary(), pa.string()):
        column = pa.array([b"good", b"caf\xe9", None]).cast(pa.binary()).view(kind)
        sent = lines(tmp_path / "t.parquet", pa.table({"id": ["a", "b", "c"], "text": column}))
        assert sent == [
            b'{"id":"a","text":"good"}\n',
            b'{"id":"b","text":"caf\xe9"}\n',
            b'{"id":"c","text":null}\n',
        ]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**63, 2**53 + 1, 1], pa.uint64()), ["9223372036854775808", "9007199254740993", "1"]),
        (pa.array([Decimal("1.00"), Decimal("2.50"), Decimal(3)]), ["1.00", "2.50", "3.00"]),
        (pa.array([b"\xff\x00", b"ok", b""]), ["ff00", "ok", None]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (
            pa.array([1, 10**9, 0], pa.timestamp("ns")),
            ["1970-01-01 00:00:00.000000001", "1970-01-01 00:00:01.000000000", "1970-01-01 00:00:00.000000000"],
        ),
        (pa.array(["x", "y", "z"]).dictionary_encode(), ["x", "y", "z"]),
    ],
)
def test_ids_are_exact(tmp_path: Path, column: pa.Array, expected: list[str | None]) -> None:
    table = pa.table({"id": column, "text": WORDS})
    assert [row_id for row_id, _ in rows(tmp_path / "t.parquet", table)] == expected


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([["a"], ["b"], ["c"]]), "holds list<.*>, not text"),
        (pa.array([{"a": 1}, {"a": 2}, {"a": 3}]), "holds struct<a: int64>, not text"),
        (pa.array([1, 2, 3]), "holds int64, not text"),
        (pa.array([1, 2, 3]).dictionary_encode(), "holds (dictionary<.*>|int64), not text"),
        (pa.array([b"12", b"34", b"56"], pa.binary(2)), "holds fixed_size_binary.2., not text"),
    ],
)
def test_other_types_are_refused_by_name(tmp_path: Path, column: pa.Array, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rows(tmp_path / "t.parquet", pa.table({"text": column, "body": WORDS}))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    for names in (["text", "text", "id"], ["text", "id", "id"]):
        with pytest.raises(UsageError, match="2 columns called"):
            rows(tmp_path / "t.parquet", pa.table([WORDS, WORDS, WORDS], names=names))
    assert rows(tmp_path / "t.parquet", pa.table([WORDS, WORDS, WORDS], names=["n", "text", "n"]))[0][1] == "alpha"


def test_a_nested_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'id' holds list<.*--id-column"):
        rows(tmp_path / "t.parquet", pa.table({"id": [[1], [2], [3]], "text": WORDS}))


def test_damage_is_one_readable_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    lines(path, pa.table({"text": [f"text number {i}" for i in range(50_000)]}))
    whole = path.read_bytes()
    for broken in (whole[:-7], whole[: len(whole) // 2], whole[:200] + bytes(2000) + whole[2200:]):
        path.write_bytes(broken)
        with pytest.raises(CliError, match="not readable as Parquet") as raised:
            list(open_corpus(path).lines())
        assert raised.value.failure is Failure.FILE


def damaged(path: Path, whole: bytes) -> str:
    path.write_bytes(whole)
    with pytest.raises(CliError) as raised:
        list(open_corpus(path, format="parquet").lines())
    return str(raised.value)


def test_the_part_that_is_damaged_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"id": list(range(5000)), "text": [f"text number {i} {i * 7919}" for i in range(5000)]})
    pa.parquet.write_table(table, path, row_group_size=1500, use_dictionary=False)
    whole, metadata = path.read_bytes(), pa.parquet.ParquetFile(path).metadata
    size = len(whole)
    footer = size - 8 - int.from_bytes(whole[-8:-4], "little")
    for group, rows in ((0, "1 to 1,500"), (2, "3,001 to 4,500"), (3, "4,501 to 5,000")):
        for column, name in ((1, "text"), (0, "id")):
            start = metadata.row_group(group).column(column).data_page_offset
            said = damaged(path, whole[:start] + b"\xff" * 500 + whole[start + 500 :])
            assert f"column '{name}' is damaged in row group {group + 1} of 4 (rows {rows})" in said
            assert "footer is whole" in said and "cut off" not in said
    said = damaged(path, whole[:footer] + bytes(50) + whole[footer + 50 :])
    assert f"its footer, bytes {footer:,} to {size:,}, is damaged" in said and "cut off" not in said
    assert f"no footer at its end, byte {size - 7:,}: it is cut off there" in damaged(path, whole[:-7])
    assert "written behind the footer" in damaged(path, whole + b"\n")
    assert "has 4,294,967,295 bytes, and the file" in damaged(path, whole[:-8] + b"\xff" * 4 + b"PAR1").replace(
        "would have", "has"
    )
    assert "its footer is encrypted" in damaged(path, whole[:-4] + b"PARE")
    assert "neither its first nor its last bytes are PAR1" in damaged(path, b"a text\n" * 9)
    assert "it is empty" in damaged(path, b"")


def test_a_page_whose_checksum_is_wrong_is_not_read_as_another_text(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"text": ["alpha", "beta"]})
    pa.parquet.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    whole = path.read_bytes()
    at = whole.index(b"alpha")
    assert "column 'text' is damaged in row group 1 of 1" in damaged(path, whole[:at] + b"A" + whole[at + 1 :])


def test_a_codec_that_is_not_known_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pa.parquet.write_table(pa.table({"text": WORDS}), path, compression="snappy", use_dictionary=False)
    whole = path.read_bytes()
    codec = bytes([0x19, 0x18, 4]) + b"text" + bytes([0x15])  # the path of the column, then its codec as a varint
    at = whole.rindex(codec) + len(codec)
    said = damaged(path, whole[:at] + bytes([6]) + whole[at + 1 :])  # LZO
    assert "damaged" not in said and "LZO" in said


def test_options_of_texts_are_not_for_parquet(tmp_path: Path) -> None:
    for option in ({"encoding": "utf-8"}, {"delimiter": ";"}, {"format": "csv"}):
        with pytest.raises(UsageError):
            rows(tmp_path / "t.parquet", pa.table({"text": WORDS}), **option)
