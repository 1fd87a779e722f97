"""Replies in OpenAI's shape, read fast, and read the plain way: the two agree, or the reply is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pybase64
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.embedding import Batch, Matrix, Options
from models.errors import UpstreamProtocolError
from providers.base import UpstreamReply, check_vectors
from providers.openai import OpenAIProvider

WIDTH = 5
PROVIDER = OpenAIProvider()
STYLES: list[Callable[[Any], str]] = [
    lambda document: json.dumps(document, separators=(",", ":")),
    json.dumps,
    lambda document: json.dumps(document, indent=1),
    lambda document: json.dumps(document, sort_keys=True, separators=(",", ":")),
]
TRICKS = ['"embedding":"', '\\"embedding\\":\\"', '","embedding":"AAAA', "\u2028", "é", "\\", ""]

names = st.sampled_from(["data", "embedding", "index", "usage", "model"])
other_documents = st.recursive(
    st.none() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode())


def batch(count: int) -> Batch:
    return Batch(["x"] * count, range(count), 1, WIDTH, Options())


def read(body: bytes, count: int) -> Matrix:
    embedded = PROVIDER.parse_reply(UpstreamReply(200, {}, body), batch(count))
    check_vectors(embedded.vectors, count, WIDTH)
    return embedded.vectors


def plainly(body: bytes) -> bytes:
    """The vectors of a reply in the order of their indexes, by the standard library alone."""
    items = json.loads(body.decode("utf-8", "replace"))["data"]
    ordered = [item for _, item in sorted(enumerate(items), key=lambda placed: placed[1].get("index", placed[0]))]
    return b"".join(
        pybase64.b64decode(item["embedding"])
        if isinstance(item["embedding"], str)
        else np.array(item["embedding"], dtype=np.float32).tobytes()
        for item in ordered
    )


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A good reply: shuffled, with or without indexes, in either encoding, with texts that try to look like vectors."""
    count = draw(st.integers(1, 6))
    rows = np.arange(1, count * WIDTH + 1, dtype="<f4").reshape(count, WIDTH)
    base64, indexed = draw(st.booleans()), draw(st.booleans())
    data: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        item: dict[str, Any] = {"object": draw(st.sampled_from(TRICKS))} if draw(st.booleans()) else {}
        item["embedding"] = pybase64.b64encode_as_string(row.tobytes()) if base64 else row.tolist()
        if indexed:
            item["index"] = index
        if draw(st.booleans()):
            item[draw(st.sampled_from(TRICKS))] = draw(st.sampled_from(TRICKS))
        data.append(item)
    if indexed:
        data = draw(st.permutations(data))
    document = {"model": draw(st.sampled_from(TRICKS)), "data": data, "usage": {"prompt_tokens": 1}}
    return {name: document[name] for name in draw(st.permutations(sorted(document)))}, count


@pytest.mark.fault(37)
@settings(max_examples=300)
@given(documents(), st.sampled_from(STYLES))
def test_a_good_reply_is_read_alike_in_every_layout(
    made: tuple[dict[str, Any], int], style: Callable[[Any], str]
) -> None:
    document, count = made
    body = style(document).encode()
    assert read(body, count).tobytes() == plainly(body)


@pytest.mark.fault(34)
@settings(max_examples=300)
@given(documents(), st.sampled_from(STYLES), st.data())
def test_a_reply_damaged_anywhere_is_refused_or_reads_as_what_it_now_says(
    made: tuple[dict[str, Any], int], style: Callable[[Any], str], data: st.DataObject
) -> None:
    document, count = made
    body = bytearray(style(document).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        rows = read(bytes(body), count)
        reference: bytes | None = plainly(bytes(body))
    except UpstreamProtocolError:
        return
    except json.JSONDecodeError:  # damaged where nobody looks: inside a value of a key that is not ours
        reference = None
    assert reference is None or rows.tobytes() == reference


@pytest.mark.fault(34)
@pytest.mark.parametrize("count", [1, 2])
@given(body=st.binary(max_size=60) | other_documents)
def test_anything_else_is_refused_in_the_one_way(body: bytes, count: int) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(body, count)


@pytest.mark.parametrize("body", [b'"\x80"', b'{"data":[{"embedding":"\xff"}]}', b'{"data":[{"embedding":"\\ud800"}]}'])
def test_what_is_not_utf8(body: bytes) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(body, 1)
    assert PROVIDER.error_from(UpstreamReply(500, {}, body)).status == 500


def test_a_vector_that_no_item_keeps_goes_to_no_input() -> None:
    one, two = (base64_of(np.full(WIDTH, number, dtype=np.float32)) for number in (1, 2))

    def body(text: str) -> bytes:
        return text.replace("ONE", one).replace("TWO", two).encode()

    doubled = body('{"data":[{"index":0,"embedding":"ONE","embedding":"TWO"},{"index":1,"embedding":""}]}')
    with pytest.raises(UpstreamProtocolError):
        read(doubled, 2)
    outside = body('{"extra":{"embedding":"ONE"},"data":[{"index":0,"embedding":""}]}')
    with pytest.raises(UpstreamProtocolError):
        read(outside, 1)
    beside = body('{"extra":{"embedding":"ONE"},"data":[{"index":0,"embedding":"TWO"}]}')
    assert read(beside, 1)[0].tolist() == [2.0] * WIDTH


def base64_of(vector: Any) -> str:
    return pybase64.b64encode(vector.tobytes()).decode()


ONE = '{"index":0,"embedding":[1,2,3,4,5]}'
TWO = '{"index":1,"embedding":[6,7,8,9,10]}'
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "data",
    [
        f'[{ONE},{{"index":0,"index":1,"embedding":[6,7,8,9,10]}}]',
        f'[{ONE},{{"index":1,"embedding":[1,2,3,4,5],"embedding":[6,7,8,9,10]}}]',
        f'[{ONE},{{"index":1,"embedding":[6,7,8,9,10],"\\u0069ndex":1}}]',
        f'[{TWO},{ONE}],"data":[{ONE},{TWO}]',
        f'[{ONE},{{"index":1,"embedding":[1e999,7,8,9,10]}}]',
        f'[{ONE},{{"index":1,"embedding":["6","7","8","9","10"]}}]',
        f'[{ONE},{{"index":1,"embedding":[[6,7,8,9,10]]}}]',
        f'[{ONE},{{"index":1,"embedding":[6,7,8,9,null]}}]',
        f'[{TWO},{{"index":{{}},"embedding":[6,7,8,9,10]}}]',
        f'[{ONE},{{"index":1,"embedding":[6,7,8,9,10],"deep":{DEEP}}}]',
        f'[{ONE},{TWO}],"deep":{DEEP}',
        DEEP,
    ],
    ids=["index", "embedding", "escaped", "data", "1e999", "strings", "nested", "null", "no index", *"abc"],
)
def test_json_that_must_not_be_guessed_at(data: str) -> None:
    with pytest.raises(UpstreamProtocolError):
        read(f'{{"data":{data}}}'.encode(), 2)


def test_keys_elsewhere_and_byte_order_marks() -> None:
    good = f'{{"data":[{TWO},{ONE}],"meta":{{"index":5,"data":[]}}}}'.encode()
    for body in (good, b"\xef\xbb\xbf" + good):
        assert read(body, 2)[:, 0].tolist() == [1.0, 6.0]
