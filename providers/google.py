"""Google's Gemini API: batchEmbedContents, one request object for each text, vectors in the order of the objects.

Several parts in one `content` become a single vector, so each text has an object of its own. gemini-embedding-2 has no
task types: their place is a text template of the route.

Sources: googleapis/python-genai 3.4, vercel/ai packages/google, pydantic-ai embeddings/google.py (2026-08 to 2026-11).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.error_envelope import ErrorFacts
from providers.json_provider import JsonProvider
from providers.json_reply import Vector, decode_reply, embedding_reply, float_rows
from providers.json_request import completed, post
from providers.traits import MappedField, Traits

TASK_TYPES: Mapping[str, object] = {
    "query": "RETRIEVAL_QUERY",
    "document": "RETRIEVAL_DOCUMENT",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
    "similarity": "SEMANTIC_SIMILARITY",
    "code_query": "CODE_RETRIEVAL_QUERY",
}
# A quote inside of a JSON string would be escaped: what a message quotes is never taken for a quota's name.
_QUOTA_ID = re.compile(rb'"quotaId"\s*:\s*"([^"\\]{1,200})"')


class Values(msgspec.Struct):
    """One vector. Google leaves out lists that are empty."""

    values: Vector = None


class GoogleReply(msgspec.Struct):
    """A reply to batchEmbedContents. gemini-embedding-001 may leave the usage out."""

    embeddings: list[Values]
    usageMetadata: Any = None  # noqa: N815  # Google's name


_REPLY = msgspec.json.Decoder(GoogleReply)


class GoogleProvider(JsonProvider):
    """POST /models/{model}:batchEmbedContents."""

    traits = Traits(
        kind="google",
        title="Google Gemini API",
        # 100 requests a call; 8,192 tokens an input are gemini-embedding-2's, 001 takes 2,048. None is known for a
        # call: the numbers are ours.
        limits=Limits(
            inputs_per_call=100, tokens_per_input=8192, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://generativelanguage.googleapis.com/v1beta",
        path="/models/{model}:batchEmbedContents",
        key_variables=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        key_header="x-goog-api-key",
        width_field="outputDimensionality",
        input_type=MappedField("taskType", TASK_TYPES),
        order="position",
        cuts_silently=True,  # 001; M
        narrow_is_unit=False,  # 001 is of unit length at 3,072 numbers only
        source="python-genai 3.4, vercel/ai packages/google, 2026-08",
    )

    def traits_of(self, upstream_model: str) -> Traits:
        """gemini-embedding-2 has no task types, and brings narrower vectors to length 1 by itself."""
        if not is_second_generation(upstream_model.removeprefix("models/")):
            return self.traits
        return replace(self.traits, input_type=None, narrow_is_unit=True)

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """One object for each text, each with the fields of the table and the caller's options (`title`)."""
        model = route.upstream_model.removeprefix("models/")
        common = completed(self.traits_of(model), {"model": f"models/{model}"}, batch, route)
        body = {"requests": [{**common, "content": {"parts": [{"text": text}]}} for text in batch.inputs]}
        return post(self.traits, model_path(self.traits.path, model), body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`embeddings[].values`; tokens are `usageMetadata.promptTokenCount`, which may be missing."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        return embedding_reply(
            lambda: float_rows([each.values for each in answer.embeddings], batch, route),
            prompt_tokens(answer.usageMetadata),
            batch,
        )

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """Google names the violated quotas: one of a day is spent for the day, the others fill again in a minute.

        Its rate limits begin with the words by which OpenAI says that the account has no credit left.
        """
        facts = super().facts(reply)
        if reply.status != 429:
            return facts
        quotas = b" ".join(_QUOTA_ID.findall(reply.body)).lower()
        codes = {
            code
            for code, part in (("insufficient_quota", b"perday"), ("tokens", b"token"), ("requests", b"request"))
            if part in quotas
        }
        return replace(
            facts, codes=facts.codes | codes, message=facts.message.removeprefix("You exceeded your current quota")
        )


def is_second_generation(model: str) -> bool:
    """True for gemini-embedding-2 and its versions."""
    return model.startswith("gemini-embedding-2")


def model_path(path: str, model: str) -> str:
    """The path with the model in it."""
    return path.replace("{model}", quote(model, safe=""))


def prompt_tokens(usage: Any) -> Sequence[object]:
    """The token counts of `usageMetadata`: the sum, or that of its details, which the two APIs spell differently."""
    if not isinstance(usage, dict):
        return ()
    if usage.get("promptTokenCount") is not None:
        return (usage["promptTokenCount"],)
    details = usage.get("promptTokenDetails") or usage.get("promptTokensDetails")  # Gemini's spelling, Vertex AI's
    details = details if isinstance(details, list) else ()
    counts = [each.get("tokenCount") for each in details if isinstance(each, dict)]
    numbers = [count for count in counts if isinstance(count, int)]
    return (sum(numbers),) if numbers and len(numbers) == len(counts) else ()
