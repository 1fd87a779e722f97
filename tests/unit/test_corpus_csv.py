"""CSV in chunks: however it is cut, the rows are those that the csv module reads of the whole."""

from __future__ import annotations

import csv
import io
import random
from itertools import pairwise

import pytest

from engine.corpus.csv_parser import CsvParser
from engine.corpus.csv_rows import CsvFault, CsvRows, delimiters_that_fit
from engine.corpus.lines import ParsedRecords
from engine.corpus.parser import json_line_parser
from engine.corpus.unreadable import UnreadableCorpus

PIECES = ["a", "bc", ",", '""', "\n", "é", "\u2028", "\r\n", " ", "x" * 50]


def parse(body: bytes, cuts: list[int], *, max_line_bytes: int = 10_000) -> ParsedRecords:
    parser = CsvParser(text_column=None, id_column=None, delimiter=",", max_line_bytes=max_line_bytes)
    whole = ParsedRecords()
    edges = [0, *sorted(cuts), len(body)]
    chunks = [parser.feed(body[low:high]) for low, high in pairwise(edges)]
    for records in [each for chunk in chunks for each in chunk] + list(parser.finish()):
        for position, error in records.errors.items():
            whole.errors[len(whole.inputs) + position] = error
        whole.inputs += records.inputs
        whole.ids += records.ids
    return whole


def random_table(chance: random.Random) -> tuple[bytes, list[tuple[str, str]]]:
    """A table and its rows: cells with everything that must be quoted."""
    rows = [
        # Not with a space first: before a quote that is refused, as the mistake that it nearly always is.
        (f"id{n}", "t" + "".join(chance.choices(PIECES, k=chance.randrange(1, 9))).replace('""', '"') + "!")
        for n in range(chance.randrange(1, 40))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=chance.choice(["\n", "\r\n"]))
    writer.writerow(["id", "text"])
    writer.writerows(rows)
    return out.getvalue().encode(), rows


@pytest.mark.parametrize("seed", range(60))
def test_any_cut_gives_the_same_rows(seed: int) -> None:
    chance = random.Random(seed)
    body, rows = random_table(chance)
    for cuts in ([], [1], list(range(len(body))), chance.choices(range(len(body)), k=7)):
        records = parse(body, cuts)
        assert not records.errors
        assert list(zip(records.ids, records.inputs, strict=True)) == rows


def test_rows_have_the_number_of_their_first_line() -> None:
    rows = CsvRows(",", first_line=5, max_row_chars=1000)
    found = [*rows.feed(["a,b\n", '"c\n']), *rows.feed(["d\n"]), *rows.feed(['e",f\n']), *rows.finish()]
    assert found == [(5, ["a", "b"]), (6, ["c\nd\ne", "f"])]
    assert rows.next_line == 9 and rows.pending_chars == 0


def test_a_row_of_many_lines_is_not_parsed_with_each_of_them() -> None:
    """20,000 lines in one cell, one chunk each: quadratic work would take minutes."""
    rows = CsvRows(",", max_row_chars=10_000_000)
    found = list(rows.feed(['"']))
    for _ in range(20_000):
        found += rows.feed(["a line of the cell\n"])
    found += [*rows.feed(['"\n']), *rows.finish()]
    assert len(found) == 1 and len(found[0][1][0]) == 19 * 20_000


@pytest.mark.parametrize(
    ("lines", "line", "reason"),
    [
        (['a,"b\n'], 1, "unexpected end"),
        (["a\n", '"b" c\n'], 2, "expected after"),
        (["a\n", "b\n", "x" * 600 + "\n"], 3, "row too long"),
        (["a\n", '"' + "x\n" * 10, *["yyyyyyyyyy\n"] * 60], 2, "row too long"),
    ],
)
def test_a_fault_has_the_line_of_its_row(lines: list[str], line: int, reason: str) -> None:
    rows = CsvRows(",", max_row_chars=500)
    with pytest.raises(CsvFault) as raised:
        list(rows.feed(lines))
        list(rows.finish())
    assert raised.value.line == line and reason in raised.value.reason


def test_memory_is_bounded_by_the_longest_row() -> None:
    parser = CsvParser(text_column=None, id_column=None, delimiter=",", max_line_bytes=1000)
    list(parser.feed(b"text\n" * 60_000))
    with pytest.raises(UnreadableCorpus, match="longer than 1,000"):
        for _ in range(1000):
            list(parser.feed(b'"' + b"a" * 50_000))
            assert parser.held_bytes < 200_000


@pytest.mark.parametrize(
    ("sample", "expected"),
    [(["a,b\n"], [","]), (["a\n"], [","]), (["a;b\n", "1;2\n"], [";"]), (["a,b;c\n"], [",", ";"]), ([], [","])],
)
def test_delimiters(sample: list[str], expected: list[str]) -> None:
    assert delimiters_that_fit(sample) == expected


@pytest.mark.parametrize(
    ("line", "text", "caller_id", "code"),
    [
        (b'{"k":"a","t":"one"}', "one", "a", None),
        (b'{"t":[1,2],"text":"x","id":"y"}', [1, 2], None, None),
        (b'{"k":7,"t":"one"}', "one", "7", None),
        (b'"a string"', "a string", None, None),
        (b'{"k":"a","text":"x"}', None, "a", "invalid_input"),
        (b'{"k":"a","t":{"x":1}}', None, "a", "invalid_input"),
        (b'{"k":"a","t":', None, None, "invalid_json"),
        (b'{"t":"' + b"\xff" + b'"}', None, None, "invalid_json"),
        (b'{"k":{},"t":"one"}', None, None, "invalid_input"),
    ],
)
def test_json_lines_with_other_names(line: bytes, text: object, caller_id: str | None, code: str | None) -> None:
    records = ParsedRecords()
    json_line_parser("t", "k")(line, records)
    assert (records.inputs, records.ids) == ([text], [caller_id])
    assert (records.errors[0].code if records.errors else None) == code
