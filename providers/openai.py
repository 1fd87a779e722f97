"""The OpenAI wire format: OpenAI itself and every server that speaks its shape, by base URL.

Sources: openai/openai-openapi (2026-08), openai-python 3.52 `resources/embeddings.py`, recorded error bodies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from models.embedding import Batch, Limits, Route
from models.errors import (
    EmbeddingsUnsupported,
    UpstreamAuthFailed,
    UpstreamError,
    UpstreamMisconfigured,
    UpstreamOverloaded,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamTooLarge,
    UpstreamUnavailable,
)
from providers.base import (
    Embedded,
    UpstreamReply,
    UpstreamRequest,
    bearer,
    in_input_order,
    most_reply_bytes,
    rows_from_base64,
    rows_from_floats,
)
from providers.quota_hints import QuotaHint, quota_hint
from providers.retry_hints import retry_after_s


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Reply(msgspec.Struct):
    data: list[_Item]
    model: str | None = None
    usage: _Usage | None = None


_REPLY = msgspec.json.Decoder(_Reply)
_ENCODER = msgspec.json.Encoder()
# Inside a JSON string these quotes would be escaped, so they always open a vector.
_VECTOR = b'"embedding":"'


class OpenAIProvider:
    # 2,048 inputs, 8,192 tokens an input and 300,000 a call: openai-openapi 2026-08. The byte limit
    # is ours: what such a sum can weigh at the most.
    limits = Limits(
        inputs_per_call=2048, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
    )
    accepts_tokens = True
    default_base_url = "https://api.openai.com/v1"

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """POST {base}/embeddings, asking for base64: a quarter of the bytes and a tenth of the parsing."""
        body: dict[str, object] = {
            "model": route.upstream_model,
            "input": batch.inputs[0] if batch.single else batch.inputs,
            "encoding_format": "base64",
        }
        # Some compatible servers refuse `dimensions` even when it is the native width: sent only when it narrows.
        if batch.width != route.width:
            body["dimensions"] = batch.width
        if batch.options.user:
            body["user"] = batch.options.user
        extra = batch.options.provider_options.get(route.provider) or batch.options.provider_options.get(
            route.account.kind
        )
        if isinstance(extra, dict):
            body = {**extra, **body}
        return UpstreamRequest(
            "POST",
            f"{route.account.base_url}/embeddings",
            bearer(route.account),
            _ENCODER.encode(body),
            most_reply_bytes(batch),
        )

    def parse(self, reply: UpstreamReply, batch: Batch) -> Embedded:
        """Read `data[]` by index. Floats are accepted where a server ignores `encoding_format`."""
        frame, lifted = lift_vectors(reply.body, batch.width)
        try:
            answer = _REPLY.decode(frame)
            if lifted and [item.embedding for item in answer.data] != _markers(len(lifted)):
                # Vectors somewhere else than one in each item: nothing clever is done about such a reply.
                answer, lifted = _REPLY.decode(reply.body), []
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UpstreamProtocolError("the reply is not an OpenAI embeddings object") from error
        items = answer.data
        if not _says_each_key_once(frame if lifted else reply.body, items):
            raise UpstreamProtocolError("the reply says the same key twice")
        if len(items) != len(batch.inputs):
            raise UpstreamProtocolError(f"the reply holds {len(items)} vectors for {len(batch.inputs)} inputs")
        embeddings: list[str | list[float]] | list[memoryview] = lifted or [item.embedding for item in items]
        texts = [e for e in embeddings if isinstance(e, str | memoryview)]
        if len(texts) == len(embeddings):
            rows = rows_from_base64(texts, batch.width)
        elif not texts:
            rows = rows_from_floats([e for e in embeddings if isinstance(e, list)], batch.width)
        else:
            raise UpstreamProtocolError("the reply mixes base64 and float vectors")
        indexes = [item.index for item in items if item.index is not None]
        if indexes and len(indexes) != len(items):
            raise UpstreamProtocolError("some vectors of the reply have an index and some have none")
        usage = answer.usage
        tokens = (usage.prompt_tokens or usage.total_tokens) if usage else None
        # Zero is what servers that do not count report (LM Studio); a negative or absurd count is not believed either.
        counted = tokens if tokens and 0 < tokens < 2**53 else None
        return Embedded(in_input_order(rows, indexes or None, len(items)), counted, answer.model)

    def fault(self, reply: UpstreamReply) -> UpstreamError:
        """Structured code first, then words where OpenAI gives nothing else, then status."""
        message, code, kind = _error_of(reply.body)
        words = message.lower()
        status = reply.status
        if "insufficient_quota" in (code, kind) or "exceeded your current quota" in words or status == 402:
            return UpstreamAuthFailed(
                "the account at the provider has no credit left", status=status, code="upstream_quota"
            )
        if code == "invalid_api_key" or status in (401, 403):
            return UpstreamAuthFailed("the provider refused the account's credential", status=status)
        if 300 <= status < 400:
            return UpstreamMisconfigured("the provider answers with a redirect, which is not followed", status=status)
        if code == "model_not_found" or status == 404:
            return UpstreamMisconfigured("the provider does not know the upstream model or path", status=status)
        if "max_tokens_per_request" in (code, kind) or "maximum request size is" in words:
            return UpstreamTooLarge("too many tokens in one call", status=status, limit="tokens")
        if status == 413 or code == "array_above_max_length" or "2048 or less" in words or "array too long" in words:
            return UpstreamTooLarge(
                "too many inputs or bytes in one call", status=status, limit=_limit_named(code, words)
            )
        if status in (400, 422) and "batch size" in words:  # text-embeddings-inference
            return UpstreamTooLarge("too many inputs in one call", status=status, limit="inputs")
        if "maximum context length" in words or "maximum input length" in words:
            return UpstreamRejected(
                "the input is longer than the model takes",
                status=status,
                code="input_too_long",
                guilty=_guilty(message),
            )
        if status in (400, 422):
            if "dimension" in words or "matryoshka" in words or code == "unknown_parameter":
                return UpstreamMisconfigured("the provider refused a parameter of the call", status=status)
            return UpstreamRejected("the provider refused the input", status=status, guilty=_guilty(message))
        if status in (425, 429):
            return UpstreamRateLimited(
                "the provider's rate limit is reached",
                status=status,
                retry_after_s=retry_after_s(reply.headers, message),
            )
        if status == 501:
            return EmbeddingsUnsupported("the provider cannot embed", status=status)
        if status in (405, 415):
            return UpstreamMisconfigured("the provider does not serve embeddings at this path", status=status)
        if status in (408, 499, 504, 524):
            return UpstreamTimeout("the provider ran out of time", status=status)
        unavailable = UpstreamOverloaded if status in (503, 529) else UpstreamUnavailable
        return unavailable(
            f"the provider failed with status {status}",
            status=status,
            retry_after_s=retry_after_s(reply.headers, message),
        )

    def quota(self, reply: UpstreamReply) -> QuotaHint | None:
        """OpenAI's `x-ratelimit-*` headers, which many compatible servers send too."""
        return quota_hint(reply.headers)


def lift_vectors(body: bytes, width: int) -> tuple[bytes, list[memoryview]]:
    """Take the base64 vectors out of a reply: the JSON with a numbered marker for each, and the vectors in its order.

    Nine tenths of a reply is base64, which a JSON parser reads byte by byte and this does not read at all. Nothing is
    taken on trust: what is left must be good JSON with the markers where vectors belong, and base64 decoding refuses
    whatever is not of its alphabet, in which no marker could be written. A reply in another layout is left as it is.
    """
    chars = (width * 4 + 2) // 3 * 4
    whole = memoryview(body)
    kept: list[bytes] = []
    vectors: list[memoryview] = []
    at = 0
    while (found := body.find(_VECTOR, at)) >= 0:
        start = found + len(_VECTOR)
        end = start + chars
        if body[end : end + 1] != b'"':
            return body, []
        kept.append(body[at:start] + b"#%d" % len(vectors))
        vectors.append(whole[start:end])
        at = end
    kept.append(body[at:])
    return b"".join(kept), vectors


def _says_each_key_once(body: bytes, items: Sequence[_Item]) -> bool:
    """False when an object of the reply has a key twice: which of the two is meant, nobody can know.

    The parser takes the last without a word. As many keys as values shows that there is none; only where that does not
    hold (keys of another object, escapes, odd white space) the reply is read again, slowly.
    """
    if (
        body.count(b'"index":') == sum(item.index is not None for item in items)
        and body.count(b'"embedding":') == len(items)
        and body.count(b'"data":') == 1
        and b"\\" not in body
    ):
        return True
    try:
        json.loads(body, object_pairs_hook=_distinct)
    except _KeyTwice:
        return False
    except (ValueError, RecursionError):  # what only the other parser reads has been read by it
        return True
    return True


class _KeyTwice(Exception):
    pass


def _distinct(pairs: list[tuple[str, object]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise _KeyTwice


@lru_cache(maxsize=32)
def _markers(count: int) -> list[str]:
    return [f"#{i}" for i in range(count)]


def _error_of(body: bytes) -> tuple[str, str | None, str | None]:
    """The message, code and type of an error body, in any of the shapes that compatible servers use."""
    try:
        document = msgspec.json.decode(body[:65536])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:2048].decode("utf-8", "replace"), None, None
    if isinstance(document, list) and document:
        document = document[0]
    if not isinstance(document, dict):
        return str(document)[:2048], None, None
    error = document.get("error", document)
    if not isinstance(error, dict):
        return str(error)[:2048], None, None
    message = error.get("message") or error.get("detail") or document.get("detail") or ""
    code, kind = error.get("code"), error.get("type")
    return str(message)[:2048], code if isinstance(code, str) else None, kind if isinstance(kind, str) else None


def _limit_named(code: str | None, words: str) -> str:
    named = code == "array_above_max_length" or any(each in words for each in ("2048 or less", "array", "batch size"))
    return "inputs" if named else "bytes"


def _guilty(message: str) -> int | None:
    named = re.search(r"input\[(\d+)\]", message)
    return int(named[1]) if named else None
