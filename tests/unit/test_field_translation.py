"""Bodies with fields of other clients: whatever they hold, they become a request of ours or an error that names why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.client_fields import CLIENT_FIELDS, IGNORED_FIELDS, TAGS
from api.openai.field_translation import OWN_FIELDS, decode_request
from models.errors import InvalidInput, RequestError

NAMES = sorted({*CLIENT_FIELDS, *IGNORED_FIELDS, TAGS, *OWN_FIELDS, "unheard_of", "", "\x00", "gateway"})
WORDS = sorted({word for field in CLIENT_FIELDS.values() for word in field.words or {} if isinstance(word, str)})
SCALARS = st.none() | st.booleans() | st.integers(-2, 5_000) | st.floats(allow_nan=False) | st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)


def read(body: bytes, *, model: str | None = None, warn: bool = False) -> Any:
    return decode_request(body, model, warn)[0]


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8), st.booleans(), st.booleans())
def test_any_fields_become_a_request_or_a_named_error(fields: dict[str, Any], has_input: bool, warn: bool) -> None:
    body = msgspec.json.encode(({"model": "m", "input": "a"} if has_input else {}) | fields)
    try:
        request = read(body, warn=warn)
    except RequestError as error:
        assert error.param is not None
        return
    assert isinstance(request.input, str | list) and request.truncate in (None, "none", "end", "mean")
    assert request.dimensions is None or request.dimensions >= 1


@given(st.binary(max_size=40), st.sampled_from(NAMES))
def test_any_bytes_as_a_value_are_answered(value: bytes, name: str) -> None:
    for model in (None, "m"):
        body = b'{"model":"m","input":"a",' + msgspec.json.encode(name) + b":" + value + b"}"
        try:
            read(body, model=model)
        except RequestError as error:
            assert error.message


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_the_model_of_the_path_stands_in_for_any_other(fields: dict[str, Any]) -> None:
    try:
        request = read(msgspec.json.encode({"input": "a"} | fields), model="of-the-path")
    except RequestError as error:
        assert error.param != "model"
        return
    assert request.model == "of-the-path"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"a"', b"{", b'{"model":"m","input":"a","tags":"\xff"}'])
def test_what_is_no_object_of_json(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(body)


def test_tags_become_those_of_the_gateway() -> None:
    body = b'{"model":"m","input":"a","tags":["x"],"providerOptions":{"openai":{"seed":1},"gateway":{"sort":"cost"}}}'
    assert read(body).providerOptions == {"openai": {"seed": 1}, "gateway": {"sort": "cost", "tags": ["x"]}}
