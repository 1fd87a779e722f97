"""Reads an embeddings call to the fake upstream, and refuses what OpenAI refuses, with OpenAI's messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from models.embedding import Input
from providers.base import UpstreamReply
from providers.fake.replies import error_reply

MAX_INPUTS = 2048
MAX_INPUT_TOKENS = 8192
MAX_CALL_TOKENS = 300_000

_REFERENCE = "Please check the API reference: https://platform.openai.com/docs/api-reference."


class EmbeddingsCall(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON body of POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    def inputs(self) -> list[Input]:
        """The four forms of `input` as a list of inputs; empty when it holds none, or mixes forms."""
        value = self.input
        if isinstance(value, str):
            return [value]
        kinds = set(map(type, value))
        if len(kinds) != 1:
            return []
        if kinds == {int}:  # a flat array of token ids is one input
            return [[token for token in value if isinstance(token, int)]]
        return [item for item in value if not isinstance(item, int)]


_DECODER = msgspec.json.Decoder(EmbeddingsCall)


def read_call(body: bytes) -> EmbeddingsCall | UpstreamReply:
    """The call that a body holds, or the 400 for a body that holds none."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _malformed(str(error))


def over_limits(
    call: EmbeddingsCall, inputs: Sequence[Input], tokens: Sequence[int], width: int, *, names_offending_input: bool
) -> UpstreamReply | None:
    """The 400 for a well-formed call that OpenAI would not serve; None when it would."""
    if not inputs or "" in inputs or [] in inputs:
        return _bad_input()
    if len(inputs) > MAX_INPUTS:
        return error_reply(400, f"'$.input' is invalid. The array length must be {MAX_INPUTS} or less. {_REFERENCE}")
    if call.dimensions is not None and call.dimensions < 1:
        return error_reply(400, f"{call.dimensions} is less than the minimum of 1 - 'dimensions'")
    if call.dimensions is not None and call.dimensions > width:
        message = f"Invalid value for 'dimensions' = {call.dimensions}. Must be less than or equal to {width}."
        return error_reply(400, message)
    longest = max(tokens)
    if longest > MAX_INPUT_TOKENS:
        if names_offending_input:
            where = "input" if isinstance(call.input, str) else f"input[{tokens.index(longest)}]"
            return error_reply(400, f"Invalid '{where}': maximum input length is {MAX_INPUT_TOKENS} tokens.")
        requested = f"you requested {longest} tokens ({longest} in your prompt; 0 for the completion)"
        message = f"This model's maximum context length is {MAX_INPUT_TOKENS} tokens, however {requested}. "
        return error_reply(400, f"{message}Please reduce your prompt; or completion length.")
    total = sum(tokens)
    if total > MAX_CALL_TOKENS:
        message = f"Requested {total} tokens, max {MAX_CALL_TOKENS} tokens per request"
        return error_reply(400, message, kind="max_tokens_per_request", code="max_tokens_per_request")
    return None


def unauthorized(authorization: str | None) -> UpstreamReply:
    """The 401 for a missing or wrong key."""
    if not authorization:
        message = "You didn't provide an API key. You need to provide your API key in an Authorization header."
        return error_reply(401, message)
    shown = authorization.removeprefix("Bearer ")[:3]
    where = "You can find your API key at https://platform.openai.com/account/api-keys."
    return error_reply(401, f"Incorrect API key provided: {shown}***. {where}", code="invalid_api_key")


def unknown_model(model: str) -> UpstreamReply:
    """The 404 for a model that is not served."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return error_reply(404, message, code="model_not_found")


def _bad_input() -> UpstreamReply:
    return error_reply(400, f"'$.input' is invalid. {_REFERENCE}")


def _malformed(problem: str) -> UpstreamReply:
    """OpenAI's words for what msgspec says about a body."""
    named = re.search(r"field `(\w+)`", problem)
    if named and "missing required field" in problem:
        message = f"Missing required parameter: '{named[1]}'."
        return error_reply(400, message, param=named[1], code="missing_required_parameter")
    if named and "unknown field" in problem:
        return error_reply(400, f"Unknown parameter: '{named[1]}'.", param=named[1], code="unknown_parameter")
    path = re.search(r" - at `\$\.(\w+)", problem)
    if path is None:
        return error_reply(400, "We could not parse the JSON body of your request.")
    if path[1] == "input":
        return _bad_input()
    if path[1] == "encoding_format":
        message = "Invalid value for 'encoding_format'. Supported values are: 'float' and 'base64'."
        return error_reply(400, message, param=path[1], code="invalid_value")
    return error_reply(400, f"Invalid type for '{path[1]}'.", param=path[1], code="invalid_type")
