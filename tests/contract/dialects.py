"""How each provider answers: one entry a dialect. A new provider adds its entry here and passes the whole suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import orjson

from models.embedding import Matrix
from providers.base import UpstreamReply
from providers.openai_compatible import COMPATIBLE
from tests.contract.cloud_dialects import CLOUD_DIALECTS
from tests.contract.dialect import SECRET, Dialect, Say
from tests.contract.dialect import base64_text as _base64
from tests.contract.dialect import decimals as _floats

__all__ = ["DIALECTS", "OPENAI_ERRORS", "SECRET", "Dialect"]

OPENAI_ERRORS: Mapping[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "'$.input' is invalid. Please check the API reference."),
    401: ("invalid_request_error", "invalid_api_key", f"Incorrect API key provided: {SECRET}."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Country not supported"),
    404: ("invalid_request_error", "model_not_found", "The model `m` does not exist or you do not have access to it."),
    413: ("invalid_request_error", None, "Request body too large."),
    429: ("tokens", "rate_limit_exceeded", "Rate limit reached. Please try again in 2.812s."),
    500: ("server_error", None, "The server had an error while processing your request."),
    501: ("invalid_request_error", None, "This server cannot embed."),
    503: ("server_error", None, "The engine is currently overloaded, please try again later."),
}


def _openai(encode: Callable[[Matrix], bytes]) -> Say:
    def say(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
        items = b",".join(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, encode(row))
            for index, row in zip(indexes, vectors, strict=True)
        )
        tail = b'"model":"m","usage":{"prompt_tokens":7,"total_tokens":7}'
        return UpstreamReply(
            200, {"content-type": "application/json"}, b'{"object":"list","data":[%b],%b}' % (items, tail)
        )

    return say


def _openai_errors() -> dict[int, UpstreamReply]:
    return {
        status: UpstreamReply(
            status,
            {"content-type": "application/json"},
            orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}),
        )
        for status, (kind, code, message) in OPENAI_ERRORS.items()
    }


def _local(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    return UpstreamReply(200, {"x-tokens": "7"}, np.ascontiguousarray(vectors, dtype="<f4").tobytes())


_LOCAL_ERRORS = {
    400: UpstreamReply(400, {}, b"input[0] has nothing in it that the model knows"),
    404: UpstreamReply(404, {}, b"there is no local model named x"),
    500: UpstreamReply(500, {}, b"the model failed"),
    503: UpstreamReply(503, {}, b"the model is loading"),
}


def _cohere(name: str) -> Say:
    encode = _base64 if name == "base64" else _floats

    def say(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
        rows = b",".join(map(encode, vectors))
        meta = b'{"api_version":{"version":"2"},"billed_units":{"input_tokens":7}}'
        body = b'{"id":"e","embeddings":{"%b":[%b]},"texts":[],"meta":%b,"response_type":"embeddings_by_type"}'
        return UpstreamReply(200, {"content-type": "application/json"}, body % (name.encode(), rows, meta))

    return say


def _cohere_errors() -> dict[int, UpstreamReply]:
    messages = {
        400: "invalid request: inputs contains an element that is the empty string at index 0",
        401: "invalid api token",
        403: "forbidden",
        404: "model 'm' not found, make sure the correct model ID was used and that you have access to the model.",
        413: "payload too large",
        429: "You are past the per minute request limit, please wait and try again later.",
        500: "internal server error",
        501: "not implemented",
        503: "service unavailable",
    }
    return {status: UpstreamReply(status, {}, orjson.dumps({"message": text})) for status, text in messages.items()}


def _rows(vectors: Matrix) -> bytes:
    return b"[%b]" % b",".join(map(_floats, vectors))


def _json(body: bytes, **headers: str) -> UpstreamReply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return UpstreamReply(200, {"content-type": "application/json", **names}, body)


def _titan(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    vector = b"".join(b'"embedding":%b,' % _floats(row) for row in vectors[:1])
    return _json(b'{%b"inputTextTokenCount":7}' % vector)


def _titan_by_type(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    vector = b"".join(b'"float":%b' % _floats(row) for row in vectors[:1])
    return _json(b'{"inputTextTokenCount":7,"embeddingsByType":{%b}}' % vector)


def _bedrock_cohere(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    body = b'{"embeddings":%b,"id":"e","response_type":"embeddings_floats","texts":[]}' % _rows(vectors)
    return _json(body, x_amzn_bedrock_input_token_count="7")


def _bedrock_cohere_by_type(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    body = b'{"embeddings":{"float":%b},"id":"e","response_type":"embeddings_by_type"}' % _rows(vectors)
    return _json(body, x_amzn_bedrock_input_token_count="7")


def _nova(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    items = b",".join(b'{"embeddingType":"TEXT","embedding":%b}' % _floats(row) for row in vectors)
    return _json(b'{"embeddings":[%b],"inputTokenCount":7}' % items)


def _bedrock_errors() -> dict[int, UpstreamReply]:
    errors = {
        400: ("ValidationException", "Malformed input request: #/inputText: expected minLength: 1, actual: 0"),
        403: ("AccessDeniedException", "You don't have access to the model with the specified model ID."),
        404: ("ResourceNotFoundException", "Could not resolve the foundation model from the model identifier."),
        429: ("ThrottlingException", "Too many requests, please wait before trying again."),
        500: ("InternalServerException", "The system encountered an unexpected error during processing."),
        503: ("ServiceUnavailableException", "Bedrock is unable to process your request."),
    }
    return {
        status: UpstreamReply(
            status,
            {"x-amzn-errortype": f"{kind}:http://internal.amazon.com/coral/com.amazon.bedrock/"},
            orjson.dumps({"message": text}),
        )
        for status, (kind, text) in errors.items()
    }


def _bedrock(name: str, model: str, say: Say, inputs: int = 1) -> Dialect:
    return Dialect(
        f"bedrock, {name}",
        "bedrock",
        say,
        _bedrock_errors(),
        has_indexes=False,
        has_bytes=False,
        model=model,
        inputs=inputs,
    )


def _tei(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    return _json(_rows(vectors), x_compute_type="gpu+optimized", x_compute_tokens="7")


def _plain_errors(*replies: tuple[int, object]) -> dict[int, UpstreamReply]:
    return {
        status: UpstreamReply(status, {}, body if isinstance(body, bytes) else orjson.dumps(body))
        for status, body in replies
    }


_TEI_ERRORS = _plain_errors(
    (400, {"error": "`inputs` cannot be empty", "error_type": "Empty"}),
    (401, b""),
    (413, b"length limit exceeded"),
    (500, b""),
    (503, {"error": "Unhealthy", "error_type": "Unhealthy"}),
)


def _huggingface(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    return _json(_rows(vectors))


_HUGGINGFACE_ERRORS = _plain_errors(
    (400, {"error": ["Error in `inputs`: none is not an allowed value"]}),
    (401, {"error": "Invalid credentials in Authorization header"}),
    (403, {"error": "This authentication method does not have sufficient permissions"}),
    (404, {"error": "Model m does not exist"}),
    (429, {"error": "Rate limit reached. Please log in or use a HF access token"}),
    (500, {"error": "unknown error"}),
    (503, {"error": "Model m is currently loading", "estimated_time": 20.5}),
)


def _ollama(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    return _json(b'{"model":"m","embeddings":%b,"total_duration":14143917,"prompt_eval_count":7}' % _rows(vectors))


_OLLAMA_ERRORS = _plain_errors(
    (400, {"error": "the input length exceeds the context length"}),
    (404, {"error": 'model "m" not found, try pulling it first'}),
    (500, {"error": "llama runner process has terminated: signal: killed"}),
    (503, {"error": "server busy, please try again.  maximum pending requests exceeded"}),
)

DIALECTS = (
    Dialect("openai, base64", "openai", _openai(_base64), _openai_errors()),
    Dialect("openai, floats", "openai", _openai(_floats), _openai_errors(), has_bytes=False),
    Dialect("fake, base64", "fake", _openai(_base64), _openai_errors()),
    *(
        Dialect(
            row.kind,
            row.kind,
            _openai(_floats if row.base64 is None else _base64),
            _openai_errors(),
            has_bytes=row.base64 is not None,
            tokens=7 if row.usage == "tokens" else None,
        )
        for row in COMPATIBLE
    ),
    Dialect("cohere, base64", "cohere", _cohere("base64"), _cohere_errors(), has_indexes=False),
    Dialect("cohere, floats", "cohere", _cohere("float"), _cohere_errors(), has_indexes=False, has_bytes=False),
    _bedrock("Titan v1", "amazon.titan-embed-text-v1", _titan),
    _bedrock("Titan v2", "amazon.titan-embed-text-v2:0", _titan),
    _bedrock("Titan v2, by type", "us.amazon.titan-embed-text-v2:0", _titan_by_type),
    _bedrock("Cohere v3", "cohere.embed-english-v3", _bedrock_cohere, inputs=3),
    _bedrock("Cohere v4", "global.cohere.embed-v4:0", _bedrock_cohere_by_type, inputs=3),
    _bedrock("Nova", "amazon.nova-2-multimodal-embeddings-v1:0", _nova),
    Dialect("tei", "tei", _tei, _TEI_ERRORS, has_indexes=False, has_bytes=False),
    Dialect(
        "huggingface", "huggingface", _huggingface, _HUGGINGFACE_ERRORS, has_indexes=False, has_bytes=False, tokens=None
    ),
    Dialect("ollama", "ollama", _ollama, _OLLAMA_ERRORS, has_indexes=False, has_bytes=False),
    *CLOUD_DIALECTS,
    Dialect("local", "local", _local, _LOCAL_ERRORS, has_indexes=False, is_remote=False),
)
