"""Replies of a fake upstream: OpenAI's replies and errors, and the malformed replies that a script asks for."""

from __future__ import annotations

import gzip

import numpy as np
import orjson
import pybase64

from models.embedding import Matrix
from providers.base import UpstreamReply
from providers.fake.script import Action

JSON_HEADERS = {"content-type": "application/json", "openai-version": "2020-10-01", "openai-organization": "org-fake"}

_ITEM_HEADS = [f'{{"object":"embedding","index":{index},"embedding":"'.encode() for index in range(2048)]
_HTML = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    b"<hr><center>cloudflare</center>\r\n</body>\r\n</html>\r\n"
)

# (type, code, message) for a scripted status that says nothing else.
_ERROR_WORDS = {
    400: ("invalid_request_error", None, "We could not process the request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-fake."),
    403: (
        "invalid_request_error",
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
    ),
    404: (
        "invalid_request_error",
        "model_not_found",
        "The model `fake` does not exist or you do not have access to it.",
    ),
    413: ("invalid_request_error", None, "Request body too large."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
    503: ("server_error", None, "The server is overloaded or not ready yet."),
}
_SERVER_ERROR = (
    "server_error",
    None,
    "The server had an error while processing your request. Sorry about that!",
)
_NO_CREDIT = "You exceeded your current quota, please check your plan and billing details."


def error_reply(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> UpstreamReply:
    """An error in OpenAI's envelope."""
    body = orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})
    return UpstreamReply(status, {**JSON_HEADERS, **(headers or {})}, body)


def scripted_error(action: Action) -> UpstreamReply:
    """The error that a rule asks for: OpenAI's own type, code and message where the rule gives none."""
    status = action.status or 500
    kind, code, message = _ERROR_WORDS.get(status, _SERVER_ERROR)
    if action.code == "insufficient_quota":
        kind, message = action.code, _NO_CREDIT
    headers = {}
    if action.retry_after is not None:
        headers["retry-after"] = f"{action.retry_after}"
    if action.retry_after_ms is not None:
        headers["retry-after-ms"] = f"{action.retry_after_ms:g}"
    reply = error_reply(status, action.message or message, kind=kind, code=action.code or code, headers=headers)
    if action.body is not None:
        body = action.body.encode() if isinstance(action.body, str) else orjson.dumps(action.body)
        reply = UpstreamReply(status, reply.headers, body)
    return compressed(reply) if action.gzip else reply


def embeddings_body(rows: Matrix, model: str, tokens: int, *, base64: bool) -> bytes:
    """OpenAI's embeddings object for good vectors."""
    usage = b'"usage":{"prompt_tokens":%d,"total_tokens":%d}' % (tokens, tokens)
    parts: list[bytes | memoryview] = [b'{"object":"list","data":[']
    if base64:
        count, width = rows.shape
        heads = _ITEM_HEADS
        if width % 3 == 0:  # no padding between rows: one call encodes them all
            encoded = memoryview(pybase64.b64encode(rows.data))
            step = width * 16 // 3
            for index in range(count):
                parts += (heads[index], encoded[index * step : index * step + step], b'"},')
        else:
            for index in range(count):
                parts += (heads[index], pybase64.b64encode(rows[index].data), b'"},')
        parts[-1] = b'"}'
    else:
        items = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
        parts.append(orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1])
    parts.append(b'],"model":%b,%b}' % (orjson.dumps(model), usage))
    return b"".join(parts)


def malformed_reply(
    action: Action, headers: dict[str, str], rows: Matrix, model: str, tokens: int, *, base64: bool
) -> UpstreamReply:
    """A 200 that is malformed in the way of the rule."""
    shape = action.reply
    if shape == "html":
        return UpstreamReply(200, {**headers, "content-type": "text/html"}, _HTML)
    if shape == "empty":
        return UpstreamReply(200, headers, b"")
    if shape == "not_json":
        return UpstreamReply(200, {**headers, "content-type": "text/plain"}, b"upstream connect error")
    body = _object_body(action, rows, model, tokens, base64=base64 and shape != "floats_only")
    if shape == "cut_json":
        body = body[: len(body) // 2]
    if len(body) < action.big_body_bytes:
        body += b" " * (action.big_body_bytes - len(body))
    reply = UpstreamReply(200, headers, body)
    return compressed(reply) if action.gzip else reply


def compressed(reply: UpstreamReply) -> UpstreamReply:
    """The reply as gzip."""
    return UpstreamReply(reply.status, {**reply.headers, "content-encoding": "gzip"}, gzip.compress(reply.body))


def _object_body(action: Action, rows: Matrix, model: str, tokens: int, *, base64: bool) -> bytes:
    """The JSON body with the defect of the rule in its vectors, its items or its other fields."""
    shape = action.reply
    rows = with_defect(rows, shape)
    document = orjson.loads(embeddings_body(np.nan_to_num(rows), model, tokens, base64=base64))
    if shape in ("nan", "inf") and base64:
        document["data"][-1]["embedding"] = pybase64.b64encode_as_string(rows[-1].data)
    _change_items(document["data"], shape)
    if shape == "no_usage":
        del document["usage"]
    elif shape == "wrong_model":
        document["model"] = f"{model}-other"
    if action.usage is not None:
        document["usage"] = action.usage
    body = orjson.dumps(document)
    if shape in ("nan", "inf") and not base64:
        # A number that JSON does not have, as careless servers print it: the last one of the last vector.
        end = body.index(b"]", body.rindex(b'"embedding":['))
        start = max(body.rindex(b",", 0, end), body.rindex(b"[", 0, end)) + 1
        body = body[:start] + (b"NaN" if shape == "nan" else b"Infinity") + body[end:]
    return body


def with_defect(rows: Matrix, shape: str | None) -> Matrix:
    """A copy of the vectors: one number too wide, or the last one zero, NaN or infinite."""
    if shape == "wrong_width":
        return np.concatenate([rows, rows[:, :1]], axis=1)
    rows = rows.copy()
    if shape in ("nan", "inf", "zero"):
        rows[-1] = 0.0
        if shape != "zero":
            rows[-1, -1] = np.nan if shape == "nan" else np.inf
    return rows


def _change_items(data: list[dict[str, object]], shape: str | None) -> None:
    """Reorder, drop or repeat items of the reply, or their indexes."""
    if shape == "shuffle":
        data.reverse()
        data[:] = data[::2] + data[1::2]
    elif shape == "short":
        data.pop()
    elif shape == "long":
        data.append({**data[-1], "index": len(data)})
    elif shape == "duplicate_index":
        data[-1]["index"] = 0 if len(data) > 1 else 1
    elif shape == "missing_index":
        del data[-1]["index"]
