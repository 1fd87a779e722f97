"""Lines of the output and error files of a batch, in OpenAI's shapes. Pure: the same arguments give the same bytes.

A success has `response` and `error: null`. A request that was refused or failed has both: clients read its failure from
`response.status_code` (as OpenAI writes it) or from `error`. A request that did not run has `response: null`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass

import orjson

from engine.storage import vectors
from models.embedding import Matrix

EXPIRED = "batch_expired", "This request could not be executed before the completion window expired."
CANCELLED = "batch_cancelled", "This request was not executed, because the batch was cancelled before it ran."
# A string may hold these, and str.splitlines() of Python takes them for the ends of lines.
_LINE_SEPARATORS = ("\u0085", "\u2028", "\u2029")
# The status that the sync route answers with for an error of this code; all others are faults of the request.
_STATUS = {
    "model_not_found": 404,
    "content_filter": 422,
    "rate_limit_exceeded": 429,
    "upstream_rate_limited": 429,
    "internal_error": 500,
    "storage_refused": 500,
    "worker_lost": 500,
    "not_implemented": 501,
    "upstream_auth_failed": 502,
    "upstream_encoding_refused": 502,
    "upstream_error": 502,
    "upstream_misconfigured": 502,
    "upstream_protocol_error": 502,
    "upstream_unavailable": 502,
    "no_route_available": 503,
    "overloaded": 503,
    "route_quarantined": 503,
    "invalid_upstream_response": 502,
    "deadline_exceeded": 504,
    "upstream_timeout": 504,
}
ID_PREFIX = b"batch_req_"
BAD_REQUEST = 400
TOO_MANY_REQUESTS = 429
FIRST_SERVER_STATUS = 500


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a request has no embeddings. `status`: of the sync route; None: the request was not executed."""

    code: str
    message: str
    param: str | None = None
    status: int | None = BAD_REQUEST


# A call holds the inputs of many lines, and is billed as a whole: a line has its share.
ESTIMATED = b'"providerMetadata":{"gateway":{"usageEstimated":true}}'


def status_of(code: str) -> int:
    """The HTTP status of an input's error: 400 unless the code stands for another one."""
    return _STATUS.get(code, BAD_REQUEST)


def line_ids(batch_id: str, line: int) -> tuple[bytes, bytes]:
    """The id of a line (`batch_req_…`) and its request id, 32 hex digits each: a line written again has the same.

    The last 12 digits of the id are the number of the line.
    """
    digest = hashlib.blake2b(f"{batch_id}:{line}".encode(), digest_size=26).hexdigest().encode()
    return b"%b%b%012x" % (ID_PREFIX, digest[:20], line), digest[20:]


def line_of(line_id: bytes) -> int:
    """The number of the line with this id."""
    return int(line_id[-12:], 16)


def success_line(
    batch_id: str,
    line: int,
    custom_id: str,
    model: str,
    rows: Sequence[Matrix],
    *,
    base64: bool,
    tokens: int,
    truncated: Set[int] = frozenset(),
) -> bytes:
    """The line of a request whose inputs all have a vector. `rows`: float32, one for each input, in order.

    `truncated`: positions of the inputs that were not embedded whole.
    """
    line_id, request_id = line_ids(batch_id, line)
    pieces = [
        b'{"id":"%b","custom_id":%b,"response":{"status_code":200,"request_id":"%b","body":{"object":"list","data":['
        % (line_id, json_text(custom_id), request_id)
    ]
    quote = b'"' if base64 else b""
    encode = vectors.encode_base64 if base64 else vectors.encode_json
    for position, row in enumerate(rows):
        mark = b'"truncated":true,' if position in truncated else b""
        comma = b"," if position else b""
        pieces.append(b'%b{"object":"embedding","index":%d,%b"embedding":%b' % (comma, position, mark, quote))
        pieces.append(encode(row))
        pieces.append(quote + b"}")
    pieces.append(
        b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d},%b}},"error":null}\n'
        % (json_text(model), tokens, tokens, ESTIMATED)
    )
    return b"".join(pieces)


def failure_line(batch_id: str, line: int, custom_id: str | None, error: LineError) -> bytes:
    """The line of a request without embeddings."""
    line_id, request_id = line_ids(batch_id, line)
    code, message = json_text(error.code), json_text(error.message)
    param = b"null" if error.param is None else json_text(error.param)
    response = b"null"
    if error.status is not None:
        kind = b"invalid_request_error" if error.status < FIRST_SERVER_STATUS else b"server_error"
        if error.status == TOO_MANY_REQUESTS:
            kind = b"requests"
        response = (
            b'{"status_code":%d,"request_id":"%b","body":{"error":{"message":%b,"type":"%b","param":%b,"code":%b}}}'
            % (error.status, request_id, message, kind, param, code)
        )
    return b'{"id":"%b","custom_id":%b,"response":%b,"error":{"code":%b,"message":%b,"param":%b,"line":%d}}\n' % (
        line_id,
        b"null" if custom_id is None else json_text(custom_id),
        response,
        code,
        message,
        param,
        line,
    )


def json_text(text: str) -> bytes:
    """A JSON string without any character that a reader could take for the end of a line."""
    encoded = orjson.dumps(text)
    if text.isascii():
        return encoded
    for separator in _LINE_SEPARATORS:
        if separator in text:
            encoded = encoded.replace(separator.encode(), b"\\u%04x" % ord(separator))
    return encoded


def share(amount: int, weight_before: int, weight: int, total: int) -> int:
    """The part of `amount` for `weight` of `total`: the parts of all weights, in order, sum to the amount."""
    if not total:
        return 0
    return amount * (weight_before + weight) // total - amount * weight_before // total
