"""How the cloud vendors with wire formats of their own answer: Google, Nomic, Alibaba, Cloudflare, Snowflake, IBM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply
from tests.contract.dialect import SECRET, Dialect, Say, decimals, errors

PERPLEXITY_SCALE = 16  # the contract's vectors are of standard normal numbers: int8 takes them times this


def _listed(body: bytes, item: Callable[[int, Matrix], bytes]) -> Say:
    """A body with the items of all vectors in place of %b."""

    def say(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
        items = b",".join(item(index, row) for index, row in zip(indexes, vectors, strict=True))
        return UpstreamReply(200, {"content-type": "application/json"}, body.replace(b"%b", items))

    return say


def _google(details: str) -> Say:
    """A reply to batchEmbedContents, with the name of its API for the details of the usage."""
    body = b'{"embeddings":[%%b],"usageMetadata":{"%b":[{"modality":"TEXT","tokenCount":7}]}}' % details.encode()
    return _listed(body, lambda _, row: b'{"values":%b}' % decimals(row))


def _vertex_predict(vectors: Matrix, indexes: Sequence[int]) -> UpstreamReply:
    """Seven tokens in all, as the floats that predict gives."""
    counts = [7.0 - (len(vectors) - 1), *[1.0] * (len(vectors) - 1)]
    items = b",".join(
        b'{"embeddings":{"statistics":{"truncated":false,"token_count":%b},"values":%b}}'
        % (str(count).encode(), decimals(row))
        for count, row in zip(counts, vectors, strict=False)
    )
    return UpstreamReply(200, {}, b'{"predictions":[%b],"metadata":{"billableCharacterCount":12}}' % items)


def _int8(row: Matrix) -> bytes:
    """The vector as Perplexity writes it. A vector of which it has no finite numbers is null."""
    if not np.isfinite(row).all():
        return b"null"
    return b'"%b"' % pybase64.b64encode(np.rint(row * PERPLEXITY_SCALE).astype(np.int8).tobytes())


def _unit_int8(vectors: Matrix) -> Matrix:
    whole = np.rint(vectors * PERPLEXITY_SCALE).astype(np.int8).astype(np.float32)  # int8 has no -0.0
    lengths = np.sqrt((whole * whole).sum(axis=1, dtype=np.float32))
    lengths[lengths == 0] = 1
    return np.asarray(whole / lengths[:, np.newaxis], dtype=np.float32)


def _google_error(status: int, name: str, message: str, *details: Any) -> Any:
    return {"error": {"code": status, "message": message, "status": name, "details": list(details)}}


_RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
_GOOGLE_ERRORS = errors(
    {
        400: [_google_error(400, "INVALID_ARGUMENT", "* EmbedContentRequest.content contains an empty Part.")],
        401: _google_error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
        403: _google_error(403, "PERMISSION_DENIED", f"Consumer 'api_key:{SECRET}' has been suspended."),
        404: _google_error(404, "NOT_FOUND", "models/m is not found for API version v1beta."),
        413: _google_error(413, "INVALID_ARGUMENT", "Request payload size exceeds the limit."),
        429: _google_error(429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", _RETRY_INFO),
        500: _google_error(500, "INTERNAL", "An internal error has occurred."),
        501: _google_error(501, "UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled."),
        503: _google_error(503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    }
)
_NOMIC_ERRORS = errors(
    {
        400: {"detail": "texts must not be empty"},
        401: {"detail": f"Invalid API key {SECRET}"},
        403: {"detail": "no permission"},
        404: {"detail": "Not Found"},
        413: {"detail": "payload too large"},
        429: {"detail": "rate limit exceeded"},
        500: {"detail": "Internal Server Error"},
        501: {"detail": "not implemented"},
        503: {"detail": "Service Unavailable"},
    }
)
_DASHSCOPE_ERRORS = errors(
    {
        status: {"code": code, "message": f"{code} of {SECRET}", "request_id": "r"}
        for status, code in {
            400: "InvalidParameter",
            401: "InvalidApiKey",
            403: "AccessDenied",
            404: "ModelNotFound",
            413: "RequestTooLarge",
            429: "Throttling.RateQuota",
            500: "InternalError",
            501: "NotImplemented",
            503: "ModelServingError",
        }.items()
    }
)
_CLOUDFLARE_ERRORS = errors(
    {
        status: {"success": False, "result": None, "messages": [], "errors": [{"code": number, "message": SECRET}]}
        for status, number in {
            400: 5006,
            401: 10000,
            403: 5018,
            404: 7003,
            413: 3006,
            429: 3040,
            500: 3001,
            501: 1,
            503: 2,
        }.items()
    }
)
_SNOWFLAKE_ERRORS = errors(
    {
        status: {"message": f"{SECRET} is refused", "request_id": "r", "error_code": "390000"}
        for status in (400, 401, 403, 404, 413, 429, 500, 501, 503)
    }
)
_WATSONX_ERRORS = errors(
    {
        status: {"errors": [{"code": code, "message": SECRET, "more_info": ""}], "trace": "t", "status_code": status}
        for status, code in {
            400: "invalid_input_argument",
            401: "authentication_token_expired",
            403: "no_associated_service_instance_error",
            404: "model_not_supported",
            413: "request_too_large",
            429: "rate_limit_reached_requests",
            500: "internal_error",
            501: "not_implemented",
            503: "service_unavailable",
        }.items()
    }
)
_PERPLEXITY_ERRORS = errors(
    {
        status: {"error": {"message": SECRET, "type": kind, "code": status}}
        for status, kind in {
            400: "bad_request",
            401: "unauthorized",
            403: "forbidden",
            404: "not_found",
            413: "request_too_large",
            429: "rate_limit",
            500: "internal_error",
            501: "not_implemented",
            503: "unavailable",
        }.items()
    }
)

CLOUD_DIALECTS = (
    Dialect("google", "google", _google("promptTokenDetails"), _GOOGLE_ERRORS, has_indexes=False, has_bytes=False),
    Dialect("vertex, predict", "vertex", _vertex_predict, _GOOGLE_ERRORS, has_indexes=False, has_bytes=False),
    Dialect(
        "vertex, batchEmbedContents",
        "vertex",
        _google("promptTokensDetails"),
        _GOOGLE_ERRORS,
        has_indexes=False,
        has_bytes=False,
    ),
    Dialect(
        "nomic",
        "nomic",
        _listed(
            b'{"embeddings":[%b],"usage":{"prompt_tokens":7,"total_tokens":7},"model":"m"}',
            lambda _, row: decimals(row),
        ),
        _NOMIC_ERRORS,
        has_indexes=False,
        has_bytes=False,
        names_model=True,
    ),
    Dialect(
        "dashscope",
        "dashscope",
        _listed(
            b'{"output":{"embeddings":[%b]},"usage":{"total_tokens":7},"request_id":"r"}',
            lambda index, row: b'{"embedding":%b,"text_index":%d}' % (decimals(row), index),
        ),
        _DASHSCOPE_ERRORS,
        has_bytes=False,
        names_model=False,
    ),
    Dialect(
        "cloudflare",
        "cloudflare",
        _listed(
            b'{"result":{"shape":[3,6],"data":[%b],"pooling":"cls"},"success":true,"errors":[],"messages":[]}',
            lambda _, row: decimals(row),
        ),
        _CLOUDFLARE_ERRORS,
        has_indexes=False,
        has_bytes=False,
        tokens=None,
    ),
    Dialect(
        "snowflake",
        "snowflake",
        _listed(
            b'{"object":"list","data":[%b],"model":"m","usage":{"total_tokens":7}}',
            lambda index, row: b'{"object":"embedding","embedding":[%b],"index":%d}' % (decimals(row), index),
        ),
        _SNOWFLAKE_ERRORS,
        has_bytes=False,
    ),
    Dialect(
        "watsonx",
        "watsonx",
        _listed(
            b'{"model_id":"m","created_at":"2026-11-01T00:00:00Z","results":[%b],"input_token_count":7}',
            lambda _, row: b'{"embedding":%b}' % decimals(row),
        ),
        _WATSONX_ERRORS,
        has_indexes=False,
        has_bytes=False,
        names_model=True,
    ),
    Dialect(
        "perplexity",
        "perplexity",
        _listed(
            b'{"object":"list","data":[%b],"model":"m","usage":{"prompt_tokens":7,"total_tokens":7,"cost":{}}}',
            lambda index, row: b'{"object":"embedding","index":%d,"embedding":%b}' % (index, _int8(row)),
        ),
        _PERPLEXITY_ERRORS,
        has_bytes=False,
        read_as=_unit_int8,
    ),
)
