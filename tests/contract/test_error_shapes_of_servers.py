"""Every recorded error of the servers that people run themselves: what each means."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import (
    EmbeddingsUnsupported,
    UpstreamAuthFailed,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers.error_envelope import error_facts
from providers.error_map import error_from
from tests.contract.vendor_errors import Row, check, openai

CREDIT = "upstream_quota"
LONG = "input_too_long"


def tei(message: str, kind: str = "Validation") -> dict[str, Any]:
    return {"error": message, "error_type": kind}


TEI = (
    *(
        row
        for status in (413, 422)
        for row in (
            Row("tei", status, tei("batch size 64 > maximum allowed batch size 32"), UpstreamTooLarge, limit="inputs"),
            Row(
                "tei",
                status,
                tei("Input validation error: `inputs` must have less than 512 tokens. Given: 516"),
                UpstreamRejected,
                LONG,
                numbers=(512, 516),
            ),
            Row("tei", status, tei("Input validation error: `inputs` cannot be empty"), UpstreamRejected),
            Row(
                "tei",
                status,
                {"message": "Input validation error: `inputs` cannot be empty", "code": status, "type": "Validation"},
                UpstreamRejected,
            ),
            Row(
                "tei",
                status,
                tei("Input validation error: `dimensions` must be less than or equal to 384"),
                UpstreamMisconfigured,
            ),
        )
    ),
    Row("tei", 422, tei("Tokenization error: …", "Tokenizer"), UpstreamRejected),
    Row("tei", 400, tei("…", "Empty"), UpstreamRejected),
    Row("tei", 401, b"", UpstreamAuthFailed),
    Row("tei", 424, tei("CUDA out of memory", "Backend"), UpstreamUnavailable),
    Row("tei", 429, tei("Model is overloaded", "Overloaded"), UpstreamRateLimited),
    Row("tei", 503, tei("Unhealthy", "Unhealthy"), UpstreamOverloaded),
    Row("tei", 413, b"length limit exceeded", UpstreamTooLarge, limit="bytes"),
    Row("tei", 415, b"Expected request with `Content-Type: application/json`", UpstreamMisconfigured),
    Row("huggingface", 503, {"error": "Model x is loading", "estimated_time": 20.5}, UpstreamOverloaded, wait_s=20.5),
    Row("huggingface", 400, {"error": ["Invalid model x", "…"]}, UpstreamMisconfigured),
    Row("huggingface", 400, {"error": ["Error in `inputs`: field required"]}, UpstreamRejected),
    Row("huggingface", 402, {"error": "…"}, UpstreamAuthFailed, CREDIT),
    Row("huggingface", 404, {"error": "Not Found"}, UpstreamMisconfigured),
)
LLAMA = "input (518 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
VLLM = "This model's maximum context length is 512 tokens. "
OLLAMA = (
    *(
        Row("ollama", 400, {"error": words}, UpstreamRejected, LONG)
        for words in (
            "the input length exceeds the context length",
            "input exceeds maximum context length and cannot be truncated further",
        )
    ),
    Row("ollama", 400, {"error": "embedding contains NaN or Inf values"}, UpstreamRejected),
    Row("ollama", 500, {"error": "failed to encode response: json: unsupported value: NaN"}, UpstreamRejected),
    Row("ollama", 500, {"error": "llama runner process has terminated"}, UpstreamUnavailable),
    Row("ollama", 404, {"error": 'model "x" not found, try pulling it first'}, UpstreamMisconfigured),
    Row("ollama", 404, openai("model 'x' not found", "not_found_error"), UpstreamMisconfigured),
    Row("ollama", 400, openai("invalid input"), UpstreamRejected),
    Row("ollama", 499, b"", UpstreamTimeout),
    Row(
        "ollama",
        503,
        {"error": "server busy, please try again.  maximum pending requests …"},
        UpstreamOverloaded,
    ),
    Row("lmstudio", 400, {"error": "Model does not support embeddings"}, EmbeddingsUnsupported),
    Row("llamacpp", 400, {"error": {"code": 400, "message": "Input content cannot be empty"}}, UpstreamRejected),
    Row(
        "llamacpp",
        500,
        {"error": {"code": 500, "message": LLAMA, "type": "server_error"}},
        UpstreamRejected,
        LONG,
        numbers=(512, 518),
    ),
    Row(
        "llamacpp",
        400,
        {"error": {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 600, "n_ctx": 512}},
        UpstreamRejected,
        LONG,
        numbers=(512, 600),
    ),
    Row(
        "llamacpp",
        401,
        {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}},
        UpstreamAuthFailed,
    ),
    Row(
        "llamacpp",
        501,
        {"error": {"code": 501, "message": "This server does not support embeddings.", "type": "not_supported_error"}},
        EmbeddingsUnsupported,
    ),
    Row(
        "llamacpp",
        503,
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        UpstreamOverloaded,
    ),
)


def both_generations(message: str, kind: str, code: int) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = {"message": message, "type": kind, "param": None, "code": code}
    return {"object": "error", **fields}, {"error": fields}


REQUESTED = "However, you requested 1451 tokens in the input for embedding generation."
VLLM_AND_INFINITY = (
    *(
        Row("vllm", 400, body, UpstreamRejected, LONG, numbers=(512, count))
        for words, count in (
            (REQUESTED, 1451),
            ("However, you requested 0 output tokens and your prompt contains at least 40961 input tokens", None),
            ("Input contains at least 513 tokens.", None),
        )
        for body in both_generations(VLLM + words, "BadRequestError", 400)
    ),
    *(
        Row("vllm", 404, body, UpstreamMisconfigured)
        for body in both_generations("The model `x` does not exist.", "NotFoundError", 404)
    ),
    *(
        Row("vllm", 400, body, UpstreamMisconfigured)
        for body in both_generations(
            'Model "X" does not support matryoshka representation, changing output dimensions will lead to …',
            "BadRequestError",
            400,
        )
    ),
    *(
        Row("sglang", 400, both_generations(words, "BadRequestError", 400)[0], UpstreamMisconfigured)
        for words in (
            "Model '/models/x' does not support matryoshka representation, changing output dimensions will lead to …",
            "Model '/models/x' only supports [64, 128] matryoshka dimensions, using other output dimensions will …",
            "Requested dimensions must be greater than 0",
            "Provided dimensions are greater than max embedding dimension: 384",
        )
    ),
    Row("vllm", 404, {"detail": "Not Found"}, UpstreamMisconfigured),
    Row("vllm", 401, {"error": "Unauthorized"}, UpstreamAuthFailed),
    Row("vllm", 500, openai("EngineCore encountered an issue.", "InternalServerError", code=500), UpstreamUnavailable),
    Row("infinity", 400, openai("Invalid model: x"), UpstreamMisconfigured),
    Row("infinity", 401, {"detail": "Unauthorized"}, UpstreamAuthFailed),
    Row("infinity", 429, openai("model x is currently overloaded"), UpstreamRateLimited),
    Row("infinity", 500, openai("InternalServerError: …"), UpstreamUnavailable),
    Row(
        "infinity",
        422,
        {"detail": [{"loc": ["body", "input"], "msg": "…", "type": "too_long", "ctx": {"max_length": 2048}}]},
        UpstreamTooLarge,
        limit="inputs",
    ),
    Row(
        "infinity",
        422,
        {"detail": [{"loc": ["body", "input", 4], "msg": "…", "type": "string_too_long"}]},
        UpstreamRejected,
        LONG,
        position=4,
    ),
)


@pytest.mark.parametrize("row", [*TEI, *OLLAMA, *VLLM_AND_INFINITY], ids=str)
def test_an_error_of_a_server(row: Row) -> None:
    check(row)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 424, 425, 429, 498, 500, 501, 503, 529])
@pytest.mark.parametrize("body", [b"", b"<html/>", b"[]", b"{}", b"null", b'{"error":null}', b'{"errors":[1]}'])
def test_a_body_without_an_envelope_is_judged_by_its_status(status: int, body: bytes) -> None:
    means = {
        **dict.fromkeys((400, 422, 498), UpstreamRejected),
        **dict.fromkeys((401, 403), UpstreamAuthFailed),
        **dict.fromkeys((404, 415), UpstreamMisconfigured),
        **dict.fromkeys((425, 429), UpstreamRateLimited),
        **dict.fromkeys((503, 529), UpstreamOverloaded),
        408: UpstreamTimeout,
        413: UpstreamTooLarge,
        501: EmbeddingsUnsupported,
    }
    assert type(error_from(error_facts(status, body), {})) is means.get(status, UpstreamUnavailable)
