"""Lines of a batch file: each is one request in JSON, with the caller's id. Pure.

A fault of a line is one of two kinds. Its frame is wrong: then a strict batch fails. Or the request in it is one that
POST /v1/embeddings would refuse: then that line fails, and the batch goes on. Faults of single texts are found later.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from engine.batches.line_faults import (
    ENDPOINT,
    JSON_ERRORS,
    NOT_JSON,
    BatchBody,
    LineFault,
    bad_id,
    explain_line,
    find_double_key,
    has_endless_number,
    line_too_long,
    no_model,
    refusal,
)
from engine.corpus.double_keys import has_quotes, quotes_in, quotes_in_items
from engine.corpus.lines import EXPLAINED_BYTES, MAX_ID_BYTES
from models.embedding import Input, Options

# As many inputs as a sync request may have: the answer to a line is one object.
MAX_INPUTS_PER_LINE = 2048
MAX_OPTIONS_BYTES = 16 * 1024
# The quotes of custom_id, method, url and body, with the values of the first three.
_FRAME_QUOTES = 14


class BatchLine(msgspec.Struct, frozen=True, gc=False):
    """One request of a batch. `options_key`: 16 bytes, alike for lines with one model and the same options.

    `user` and `encoding` are not part of the key. `is_list`: the input is a list, and errors name the index in it.
    """

    custom_id: str
    model: str
    options_key: bytes
    inputs: list[Input]
    is_list: bool
    encoding: Literal["float", "base64"]
    dimensions: int | None
    input_type: str | None
    truncate: str
    user: str | None
    provider_options: dict[str, dict[str, Any]]

    def options(self) -> Options:
        """The options of the request, without its user."""
        return Options(
            dimensions=self.dimensions,
            input_type=self.input_type,
            truncate=self.truncate,
            provider_options=self.provider_options,
        )


class _Line(msgspec.Struct):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/embeddings"]
    body: BatchBody


_LINE = msgspec.json.Decoder(_Line)
__all__ = ["ENDPOINT", "MAX_INPUTS_PER_LINE", "BatchLine", "LineFault", "line_too_long", "parse_batch_line"]


def parse_batch_line(line: bytes, default_model: str | None) -> BatchLine | LineFault:
    """The request of a line, or what is wrong with it. `default_model`: for a body without a model."""
    if len(line) > EXPLAINED_BYTES and has_endless_number(line):
        return LineFault("invalid_json_line", f"{NOT_JSON} It holds a number of more than a thousand digits.", None)
    try:
        found = _LINE.decode(line)
    except JSON_ERRORS:
        return explain_line(line, default_model)
    body, custom_id = found.body, found.custom_id
    if not custom_id or (len(custom_id) > 128 and len(custom_id.encode()) > MAX_ID_BYTES):
        return bad_id()
    model = body.model if body.model is not None else default_model
    if model is None:
        return no_model(custom_id)
    value = body.input
    if type(value) is str:
        inputs: list[Any] = [value]
        is_list, quotes = False, _FRAME_QUOTES + 4
    else:
        kinds = set(map(type, value))
        if fault := _check_list(value, kinds, custom_id):
            return fault
        is_list = int not in kinds
        inputs = value if is_list else [value]  # type: ignore[assignment]  # one token array
        quotes = _FRAME_QUOTES + 2 + quotes_in_items(value)
    if not has_quotes(line, quotes + _option_quotes(body)) and (fault := find_double_key(line, custom_id)):
        return fault
    truncate = body.truncate or "none"
    provider_options = body.providerOptions or {}
    if provider_options:
        written = msgspec.json.encode(provider_options, order="deterministic")
        if len(written) > MAX_OPTIONS_BYTES:
            message = f"Invalid 'providerOptions': longer than {MAX_OPTIONS_BYTES} bytes as JSON. Send less of it."
            return refusal("invalid_value", message, "providerOptions", custom_id)
        key = _key_of(model, body.dimensions, body.input_type, truncate, written)
    else:
        key = _plain_key_of(model, body.dimensions, body.input_type, truncate)
    return BatchLine(
        custom_id,
        model,
        key,
        inputs,
        is_list,
        body.encoding_format or "float",
        body.dimensions,
        body.input_type,
        truncate,
        body.user,
        provider_options,
    )


def _option_quotes(body: BatchBody) -> int:
    """The quotes of the fields beside the input, where none is null."""
    count = 0 if body.model is None else 4
    if body.dimensions is not None:
        count += 2
    count += 4 * ((body.encoding_format is not None) + (body.user is not None) + (body.input_type is not None))
    count += 4 * (body.truncate is not None)
    return count if body.providerOptions is None else count + 2 + quotes_in(body.providerOptions)


def _key_of(model: str, dimensions: int | None, input_type: str | None, truncate: str, options: bytes) -> bytes:
    fields = msgspec.json.encode([model, dimensions, input_type, truncate])
    return blake2b(fields + b"\n" + options, digest_size=16).digest()


@lru_cache(maxsize=1024)
def _plain_key_of(model: str, dimensions: int | None, input_type: str | None, truncate: str) -> bytes:
    return _key_of(model, dimensions, input_type, truncate, b"{}")


def _check_list(value: Sequence[Any], kinds: set[type], custom_id: str) -> LineFault | None:
    if len(kinds) == 1:
        if kinds == {int} or len(value) <= MAX_INPUTS_PER_LINE:
            return None
        message = (
            f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS_PER_LINE}, "
            f"but got {len(value)}. Send several lines."
        )
        return refusal("array_above_max_length", message, "input", custom_id)
    if not kinds:
        return refusal(
            "empty_array", "Invalid 'input': the list is empty. Send at least one input.", "input", custom_id
        )
    first = type(value[0])
    where = f"input[{next(index for index, item in enumerate(value) if type(item) is not first)}]"
    message = f"Invalid '{where}': texts and token arrays cannot be mixed. Send them in two lines."
    return refusal("invalid_type", message, where, custom_id)
