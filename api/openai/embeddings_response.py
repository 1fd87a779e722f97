"""The answer of POST /v1/embeddings, written straight from float32 rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import Request
from starlette.responses import Response

from api.http.auth import caller_of, runtime_of
from api.openai.embedding_call import CallWarning, EmbeddingOutcome
from engine.routing.option_warnings import may_warn, option_warnings
from engine.storage import vectors
from models.base import usd_text
from models.embedding import Matrix

# A larger answer is encoded in steps, so that each tenant has its turn on the loop.
INLINE_INPUTS = 256
INLINE_NUMBERS = 256 * 1024  # in JSON: some 6 ms
INLINE_BASE64_NUMBERS = 512 * 1024
# A header takes printable ASCII; names in other scripts are percent-encoded.
VISIBLE = "/ !#$&'()*+,:;=?@[]^`{|}~<>\\\"-_."


async def render(request: Request, outcome: EmbeddingOutcome) -> Response:
    """The answer, in OpenAI's format and ours."""
    base64 = outcome.call.base64
    encoded_rows = await encode_rows(request, outcome, base64=base64)
    tokens, route = outcome.tokens, outcome.route
    metadata = gateway_metadata(outcome)
    tail = orjson.dumps(
        {
            "model": outcome.call.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "id": metadata["generationId"],
            "created": int(time.time()),
            "providerMetadata": {"gateway": metadata},
        }
    )
    response = Response(b"".join(_pieces(encoded_rows, tail, outcome.truncated, base64=base64)))
    response.raw_headers += headers_of(route.provider, outcome.alias.space)
    return response


async def encode_rows(request: Request, outcome: EmbeddingOutcome, *, base64: bool) -> list[bytes]:
    """Each vector as it stands in the answer, in the order of the inputs. A large answer is encoded in steps."""
    rows = outcome.rows()
    width = rows[0].shape[-1] if rows else 0
    max_numbers = INLINE_BASE64_NUMBERS if base64 else INLINE_NUMBERS
    if len(rows) <= INLINE_INPUTS and len(rows) * width <= max_numbers:
        return _encode(rows, base64=base64)
    # On the loop, in steps: a thread would hold the interpreter's lock as long, and cost its switches too.
    step = max(1, INLINE_NUMBERS // width)
    encoded: list[bytes] = []
    async with runtime_of(request).work.project_lock(caller_of(request).project):
        for low in range(0, len(rows), step):
            encoded += _encode(rows[low : low + step], base64=base64)
            await asyncio.sleep(0)
    return encoded


def _encode(rows: Sequence[Matrix], *, base64: bool) -> list[bytes]:
    return [vectors.encode_base64(row) if base64 else vectors.encode_json(row) for row in rows]


@lru_cache(maxsize=1024)
def headers_of(provider: str, space: str) -> tuple[tuple[bytes, bytes], ...]:
    """Headers of an answer beside the content's length, encoded once for each pair."""
    return (
        (b"content-type", b"application/json"),
        (b"x-embedmill-provider", quote(provider, safe=VISIBLE).encode()),
        (b"x-embedmill-space", quote(space, safe=VISIBLE).encode()),
    )


def _pieces(encoded_rows: Sequence[bytes], tail: bytes, truncated: Set[int], *, base64: bool) -> list[bytes]:
    """The answer in pieces: a megabyte of vectors is copied once, when they are joined."""
    openings: Sequence[bytes] = _openings(len(encoded_rows), base64=base64)
    if truncated:
        openings = [
            opening.replace(b'"embedding":', b'"truncated":true,"embedding":') if index in truncated else opening
            for index, opening in enumerate(openings)
        ]
    pieces = [b""] * (2 * len(encoded_rows))
    pieces[0::2] = openings
    pieces[1::2] = encoded_rows
    pieces += (b'"}],' if base64 else b"}],", tail[1:])
    return pieces


@lru_cache(maxsize=32)
def _openings(count: int, *, base64: bool) -> tuple[bytes, ...]:
    """What stands before each vector, the end of the one before it included."""
    quote = b'"' if base64 else b""
    first = b'{"object":"list","data":['
    between = quote + b"},"
    return tuple(
        (between if index else first) + b'{"object":"embedding","index":%d,"embedding":' % index + quote
        for index in range(count)
    )


def gateway_metadata(outcome: EmbeddingOutcome) -> dict[str, Any]:
    """`providerMetadata.gateway` of the answer."""
    alias, final = outcome.alias, outcome.route
    first = alias.routes[0]
    return {
        "routing": {
            "originalModelId": alias.name,
            "resolvedProvider": first.provider,
            "resolvedProviderApiModelId": first.upstream_model,
            "finalProvider": final.provider,
            "fallbacksAvailable": [route.provider for route in alias.routes if route is not final],
            "attempts": [
                {
                    "provider": call.provider,
                    "providerApiModelId": call.upstream_model,
                    "success": call.success,
                    "statusCode": call.status,
                    "startTime": call.started_at,
                    "endTime": call.ended_at,
                    "error": call.error,
                }
                for call in outcome.upstream_calls
            ],
        },
        "space": alias.space,
        "cost": usd_text(outcome.cost_usd),
        "generationId": outcome.generation_id,
        "usageEstimated": outcome.tokens_estimated,
        "cachedInputs": 0,
        "warnings": [each._asdict() for each in warnings_of(outcome)],
    }


def warnings_of(outcome: EmbeddingOutcome) -> list[CallWarning]:
    """What the caller should know. Nearly always nothing, which costs a look at each upstream call."""
    final = outcome.route
    warnings = list(outcome.call.warnings)
    if may_warn(outcome.options, final):
        warnings += (CallWarning(*each) for each in option_warnings(outcome.options, [final]))
    if not final.accepts_tokens and isinstance(outcome.inputs[0], list):
        decoded = f"the token arrays were decoded by {final.token_arrays}, and sent as texts"
        warnings.append(CallWarning("compatibility", "input", decoded))
    doubted = next((call for call in outcome.upstream_calls if call.usage_doubt is not None), None)
    if doubted is not None:
        reason = f"{doubted.provider} reports a number of tokens that is not believed ({doubted.usage_doubt})"
        warnings.append(CallWarning("other", "usage", f"{reason}: usage and cost are estimated"))
    return warnings
