"""A streamed corpus: a line is an index, whatever is in it and however the stream was cut into chunks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus.lines import LINE_PARSERS, LineReader, ParsedRecords, parse_json_line, parse_text_line
from models.embedding import Input

MAX = 64
Parser = Callable[[bytes, ParsedRecords], None]
# Bytes that make trouble, drawn far more often than chance would.
pieces = st.sampled_from(
    [b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b'"a"', b'"', b"[1,2]", b"{", b'{"text":"t"}',
     b"\xe2\x80\xa8", b"\x00", b"\xff", b" ", b"x" * 40, b"x" * MAX, b"\\ud800"]
)  # fmt: skip
corpora = st.lists(pieces | st.binary(max_size=6), max_size=14).map(b"".join)


def read(parse: Parser, chunks: Iterable[bytes]) -> ParsedRecords:
    """Everything that the chunks hold, as one run of lines."""
    reader, whole = LineReader(parse, max_line_bytes=MAX), ParsedRecords()
    for lines in [*(reader.feed(chunk) for chunk in chunks), reader.finish()]:
        for position, item in enumerate(lines.inputs):
            if item is None:
                for _ in range(lines.repeats.get(position, 1)):
                    whole.append_error(lines.errors[position], lines.ids[position])
            else:
                assert position not in lines.errors
                whole.add(item, lines.ids[position])
    return whole


def codes(lines: ParsedRecords) -> list[str | Input]:
    """Per line its input, or the code of its error in angle brackets."""
    return [f"<{lines.errors[i].code}>" if item is None else item for i, item in enumerate(lines.inputs)]


def is_blank(parse: Parser, line: bytes) -> bool:
    """Blank at the end of a corpus, and so no input: white space in ndjson, an empty line in plain text."""
    if len(line) > MAX:
        return False
    return line.strip(b" \t\r") == b"" if parse is parse_json_line else line in (b"", b"\r")


@pytest.mark.parametrize("parse", [parse_json_line, parse_text_line])
@given(corpus=corpora, cuts=st.lists(st.integers(0, 200), max_size=8))
def test_chunk_boundaries_never_matter(parse: Parser, corpus: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(corpus)) for cut in cuts), len(corpus)]
    cut = [corpus[low:high] for low, high in itertools.pairwise(edges)]
    assert read(parse, cut) == read(parse, [corpus]) == read(parse, [bytes([byte]) for byte in corpus])


@pytest.mark.parametrize("parse", [parse_json_line, parse_text_line])
@given(corpus=corpora)
def test_a_line_is_an_index(parse: Parser, corpus: bytes) -> None:
    written = corpus.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while written and is_blank(parse, written[-1]):
        del written[-1]
    lines = read(parse, [corpus])
    assert len(lines.inputs) == len(lines.ids) == len(written)
    for position, line in enumerate(written):
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
        (b'{"text":"t","id":1.5}', "t"),
        (b'{"text":"t","id":[1]}', "<invalid_input>"),
        (b'{"text":"t","id":true}', "<invalid_input>"),
        (b'{"text":"t","score":NaN}', "<invalid_json>"),
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
        (b"a\n\nb", ["a", "<empty_input>", "b"]),
        (b"a\n \nb\n\n\r\n", ["a", " ", "b"]),
        (b"", []),
        (b"\n", []),
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
    assert {"application/x-ndjson", "text/plain"} <= set(LINE_PARSERS)


@pytest.mark.parametrize(
    ("line", "message", "caller_id"),
    [
        (b'{"id":"b","text":"caf\xe9"}', "the text is not valid UTF-8", "b"),
        (b'"caf\xe9"', "the text is not valid UTF-8", None),
        (b'{"id":7,"text":null}', "the text is null", "7"),
        (b'{"text":"cut', "the line is not valid JSON", None),
        (b'{"id":"x"}', "the object has no text", "x"),
    ],
)
def test_an_error_says_what_is_wrong_with_a_row_of_any_file(line: bytes, message: str, caller_id: str | None) -> None:
    lines = ParsedRecords()
    parse_json_line(line, lines)
    assert lines.errors[0].message == message
    assert lines.ids == [caller_id]


@pytest.mark.parametrize(
    ("line", "caller_id", "words"),
    [
        (b'{"id":4,"text":"d","score":NaN}', "4", "NaN"),
        (b'{"id":"x","text":"half an emoji \\ud83d"}', "x", "half of a surrogate pair"),
        (b'{"text":"\\ude00 the other half","id":7}', "7", "half of a surrogate pair"),
        (b'{"id":"y","text":"latin-1 \xe9"}', "y", "not valid UTF-8"),
        (b'{"id":1.0,"text":null}', "1.0", "the text is null"),
        (b'{"id":1.0,"text":5}', "1.0", "the text is a number"),
        (b'{"id":9,"tekst":"a"}', "9", "has no text"),
        (b'{"id":3,"text":"' + b"long " * 2000 + b'\\ud83d"}', "3", "not valid JSON"),
        (b'{"id":"' + b"i" * 513 + b'","text":"a"}', None, "longer than 512 bytes"),
        (b'{"id":{},"text":"a"}', None, "the id must be"),
        (b'{"id":"z","text":', None, "not valid JSON"),
    ],
)
def test_a_bad_line_keeps_its_id_and_says_what_is_wrong(line: bytes, caller_id: str | None, words: str) -> None:
    lines = ParsedRecords()
    parse_json_line(line, lines)
    assert lines.ids == [caller_id] and words in lines.errors[0].message


@pytest.mark.parametrize(
    ("given", "kept"), [(b"4", "4"), (b"1.0", "1.0"), (b'"4"', "4"), (b"null", None), (b"-0.5", "-0.5")]
)
def test_ids_are_kept_as_they_were_given(given: bytes, kept: str | None) -> None:
    lines = ParsedRecords()
    parse_json_line(b'{"id":%b,"text":"a"}' % given, lines)
    assert (lines.inputs, lines.ids) == (["a"], [kept])


ENDLESS = b"1" * 1_000_000


@pytest.mark.parametrize(
    "line",
    [
        b'{"id": -%b, "text": "a"}' % ENDLESS,
        b'{"text":"a","id":1.%b}' % ENDLESS,
        b"[1, %b]" % ENDLESS,
        b'{"text":[1,%b]}' % ENDLESS,
    ],
)
def test_a_number_of_a_million_digits_is_refused_unread(line: bytes) -> None:
    lines = ParsedRecords()
    parse_json_line(line, lines)
    assert "digits" in lines.errors[0].message


def test_a_text_of_a_million_digits_is_a_text() -> None:
    lines = ParsedRecords()
    text = '"id":' + ENDLESS.decode()
    for line in (msgspec.json.encode(text), msgspec.json.encode({"id": 1, "text": text})):
        parse_json_line(line, lines)
    assert lines.inputs == [text, text] and not lines.errors


@pytest.mark.parametrize("parse", [parse_json_line, parse_text_line])
def test_a_million_blank_lines_are_one_entry_and_none_at_the_end(parse: Parser) -> None:
    reader = LineReader(parse, max_line_bytes=MAX)
    found = [reader.feed(b"\n" * 100_000) for _ in range(10)] + [reader.feed(b'\n"a"\n'), reader.feed(b"\r\n" * 9)]
    assert [len(lines.inputs) for lines in found] == [0] * 10 + [2, 0]
    assert found[10].repeats == {0: 1_000_001}
    assert reader.finish().inputs == []
