"""Keys that are there twice are found however they are spelled, and no other document is called so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpus.double_keys import double_key, has_quotes, quotes_in
from engine.corpus.lines import ParsedRecords, parse_json_line

words = st.text(alphabet='ab"\\é:,{}[] \n', max_size=5)
scalars = words | st.integers() | st.booleans()
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=12,
)


@given(documents, st.booleans(), st.sampled_from([(",", ":"), (" , ", " : ")]))
def test_a_document_without_a_double_key_passes_whatever_its_texts_hold(
    value: Any, is_ascii: bool, separators: tuple[str, str]
) -> None:
    document = json.dumps(value, ensure_ascii=is_ascii, separators=separators)
    assert double_key(document) is None
    assert has_quotes(document.encode(), quotes_in(value)) or '"' in document.replace('\\"', "")


@given(words, documents, documents, documents)
def test_a_double_key_never_has_the_quotes_of_its_value(key: str, first: Any, second: Any, around: Any) -> None:
    name = json.dumps(key)
    document = f"[{json.dumps(around)},{{{name}:{json.dumps(first)},{name}:{json.dumps(second)}}}]"
    assert double_key(document) == f"[1].{key}"
    assert not has_quotes(document.encode(), quotes_in(json.loads(document)))


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ('{"a":1,"a":2}', "a"),
        ('{"a":null,"\\u0061":null}', "a"),
        ('{"x":[{"b":1},{"b" :1, "b"\n:2}]}', "x[1].b"),
        ('{"x":{"y":{"":1,"":2}}}', "x.y."),
        ('{"a":{"b":1,"b":2},"a":3}', "a"),
        ('{"a":1', None),
        ("[" * 100_000, None),
    ],
)
def test_its_path_is_named(document: str, path: str | None) -> None:
    assert double_key(document) == path


@pytest.mark.parametrize(
    ("line", "key", "caller_id"),
    [
        (b'{"text":"a","text":"b"}', "text", None),
        (b'{"id":"1","text":"a","text":"b"}', "text", "1"),
        (b'{"id":"1","id":"2","text":"a"}', "id", None),
        (b'{"id":1,"id":2,"text":[1,2]}', "id", None),
        (b'{"id":null,"id":null,"text":"a"}', "id", None),
        (b'{"te\\u0078t":"a","text":"b"}', "text", None),
        (b'{"text":"say \\"no\\"","url":"u","text" : "b"}', "text", None),
    ],
)
def test_a_line_with_a_double_key_is_the_error_of_its_index(line: bytes, key: str, caller_id: str | None) -> None:
    lines = ParsedRecords()
    parse_json_line(line, lines)
    assert (lines.inputs, lines.ids) == ([None], [caller_id])
    assert lines.errors[0].code == "invalid_input" and f"'{key}' twice" in lines.errors[0].message


@pytest.mark.parametrize(
    "line",
    [
        b'{"text":"a","id":"b"}',
        b'{"id":"text","text":"id"}',
        b'{"text":"a \\"text\\": \\"text\\"","id":"\\\\"}',
        b'{"text":"caf\\u00e9","url":"u"}',
        b'{"text":"a","url":"u","url":"v"}',  # a field that is ignored
    ],
)
def test_other_lines_are_inputs(line: bytes) -> None:
    lines = ParsedRecords()
    parse_json_line(line, lines)
    assert not lines.errors and len(lines.inputs) == 1
