"""A streamed corpus: a line is an index, whatever is in it and however the stream was cut into chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus import PARSERS, LineReader, Lines, parse_json_line, parse_text_line
from models.embedding import Input

MAX = 64
Parser = Callable[[bytes, Lines], None]
# Bytes that make trouble, drawn far more often than chance would.
pieces = st.sampled_from(
    [b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b'"a"', b'"', b"[1,2]", b"{", b'{"text":"t"}',
     b"\xe2\x80\xa8", b"\x00", b"\xff", b" ", b"x" * 40, b"x" * MAX, b"\\ud800"]
)  # fmt: skip
corpora = st.lists(pieces | st.binary(max_size=6), max_size=14).map(b"".join)


def read(parse: Parser, chunks: Iterable[bytes]) -> Lines:
    """Everything that the chunks hold, as one run of lines."""
    reader, whole = LineReader(parse, max_line_bytes=MAX), Lines()
    for lines in [*(reader.feed(chunk) for chunk in chunks), reader.finish()]:
        for position, item in enumerate(lines.inputs):
            if item is None:
                whole.refuse(lines.errors[position], lines.ids[position])
            else:
                assert position not in lines.errors
                whole.add(item, lines.ids[position])
    return whole


def codes(lines: Lines) -> list[str | Input]:
    """Per line its input, or the code of its error in angle brackets."""
    return [f"<{lines.errors[i].code}>" if item is None else item for i, item in enumerate(lines.inputs)]


@pytest.mark.parametrize("parse", [parse_json_line, parse_text_line])
@given(corpus=corpora, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_chunk_boundaries_never_matter(parse: Parser, corpus: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(corpus)) for cut in cuts), len(corpus)]
    cut = [corpus[low:high] for low, high in itertools.pairwise(edges)]
    assert read(parse, cut) == read(parse, [corpus]) == read(parse, [bytes([byte]) for byte in corpus])


@pytest.mark.parametrize("parse", [parse_json_line, parse_text_line])
@given(corpus=corpora)
def test_a_line_is_an_index(parse: Parser, corpus: bytes) -> None:
    body = corpus.removeprefix(b"\xef\xbb\xbf")
    lines = read(parse, [corpus])
    assert len(lines.inputs) == len(lines.ids) == body.count(b"\n") + (not body.endswith(b"\n") and body != b"")
    for position, line in enumerate(body.split(b"\n")[: len(lines.inputs)]):
        assert (len(line) > MAX) == (position in lines.errors and "longer than" in lines.errors[position].message)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1))
def test_what_json_says_is_what_is_read(texts: list[str]) -> None:
    corpus = b"".join(msgspec.json.encode(text) + b"\n" for text in texts)
    assert read(parse_json_line, [corpus]).inputs == texts


@pytest.mark.parametrize(
    ("line", "read_as"),
    [
        (b'"a\\u0000b"', "a\0b"),
        ("\"a\u2028b\u0085c\"".encode(), "a\u2028b\u0085c"),
        (b' "spaces around" \r', "spaces around"),
        (b"[1,2,3]", [1, 2, 3]),
        (b'{"text":"t","id":"x","more":[1]}', "t"),
        (b'{"text":[7]}', [7]),
        (b'""', ""),  # refused later, with the empty inputs of every other form
        (b"", "<invalid_json>"),
        (b"   ", "<invalid_json>"),
        (b"{", "<invalid_json>"),
        (b"nul", "<invalid_json>"),
        (b'"a" "b"', "<invalid_json>"),
        (b'"\x00"', "<invalid_json>"),
        (b'"\xff"', "<invalid_json>"),
        (b'"\\ud800"', "<invalid_json>"),
        (b"null", "<invalid_input>"),
        (b"1", "<invalid_input>"),
        (b"[1.5]", "<invalid_input>"),
        (b'["a"]', "<invalid_input>"),
        (b"{}", "<invalid_input>"),
        (b'{"text":null}', "<invalid_input>"),
        (b'{"text":"t","id":1.5}', "<invalid_input>"),
        (b'"' + b"x" * MAX, "<input_too_long>"),
    ],
)  # fmt: skip
def test_lines_of_ndjson(line: bytes, read_as: object) -> None:
    assert codes(read(parse_json_line, [b'"before"\n' + line + b'\n"after"'])) == ["before", read_as, "after"]


@pytest.mark.parametrize("opening", [b"[", b'{"text":', b'{"x":'])
def test_deep_nesting_is_one_bad_line(opening: bytes) -> None:
    reader = LineReader(parse_json_line, max_line_bytes=1 << 22)
    lines = reader.feed(opening * 100_000 + b'\n"after"\n')
    assert codes(lines)[1:] == ["after"] and lines.inputs[0] is None


@pytest.mark.parametrize(
    ("corpus", "texts"),
    [
        (b"a\r\nb\rc\n", ["a", "b\rc"]),
        (b"a\n\nb", ["a", "", "b"]),
        (b"", []),
        (b"\n", [""]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf", []),
        (b"\xef\xbb", ["<invalid_input>"]),
        (b"caf\xe9\ncaf\xc3\xa9", ["<invalid_input>", "café"]),
        ("one\u2028two\u2029three\x0bfour\x1cfive".encode(), ["one\u2028two\u2029three\x0bfour\x1cfive"]),
        (b"x" * MAX + b"\n" + b"x" * (MAX + 1) + b"\nb", ["x" * MAX, "<input_too_long>", "b"]),
        (b"x" * 10_000, ["<input_too_long>"]),
    ],
)
def test_lines_of_plain_text(corpus: bytes, texts: list[str]) -> None:
    assert codes(read(parse_text_line, [corpus])) == texts


def test_ids_are_kept_as_text() -> None:
    lines = read(parse_json_line, [b'{"text":"a","id":7}\n"b"\n{"text":"c","id":"x"}\n'])
    assert lines.ids == ["7", None, "x"]


def test_a_line_without_end_is_not_held() -> None:
    reader = LineReader(parse_text_line, max_line_bytes=1000)
    for _ in range(2000):
        reader.feed(b"x" * 1000)
        assert len(reader._rest) <= 2000
    assert codes(reader.feed(b"\nnext\n")) == ["next"]


def test_what_can_be_streamed() -> None:
    assert {"application/x-ndjson", "text/plain"} <= set(PARSERS)
