"""Google's Vertex AI: predict, and batchEmbedContents for gemini-embedding-2. Vectors come in the order of the texts.

The account's key is an OAuth2 access token, which lives for about an hour. The models of predict and the Gemini API
share their errors and their task types; only the spelling of the fields differs.

Sources: vercel/ai packages/google-vertex (2026-08), googleapis/python-genai 3.4, vercel/ai issues 19950 and 19952.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.google import TASK_TYPES, GoogleProvider, is_second_generation, model_path
from providers.json_reply import Vector, decode_reply, embedding_reply, float_rows
from providers.json_request import completed, post
from providers.traits import MappedField, Setting, Traits

# Fields of one text; all others are parameters of the call.
_OF_AN_INSTANCE = ("task_type", "title")
_BATCH_PATH = "/publishers/google/models/{model}:batchEmbedContents"


class _Embeddings(msgspec.Struct):
    values: Vector = None
    statistics: Any = None


class _Prediction(msgspec.Struct):
    embeddings: _Embeddings


class _Reply(msgspec.Struct):
    predictions: list[_Prediction]


_REPLY = msgspec.json.Decoder(_Reply)


class VertexProvider(GoogleProvider):
    """POST …/models/{model}:predict, and :batchEmbedContents for gemini-embedding-2."""

    traits = Traits(
        kind="vertex",
        title="Google Vertex AI; its key is an OAuth2 access token",
        # 250 instances, 20,000 tokens a call and 2,048 an instance: refusals that issues of 2026 quote.
        limits=Limits(
            inputs_per_call=250, tokens_per_input=2048, tokens_per_call=20_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://{location}-aiplatform.googleapis.com/v1/projects/{project}/locations/{location}",
        path="/publishers/google/models/{model}:predict",
        key_variables=("GOOGLE_OAUTH_ACCESS_TOKEN", "CLOUDSDK_AUTH_ACCESS_TOKEN"),  # M
        settings={
            "project": Setting("the id of the Google Cloud project"),
            "location": Setting("the region, or global", default="us-central1"),
        },
        width_field="outputDimensionality",
        input_type=MappedField("task_type", TASK_TYPES),
        truncate=MappedField("autoTruncate", {"none": False, "mean": False, "end": True}),
        order="position",
        narrow_is_unit=False,
        source="vercel/ai packages/google-vertex 2026-08, python-genai 3.4",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts with their task type as instances, all other fields and the caller's options as parameters."""
        model = route.upstream_model
        if is_second_generation(model):
            config = completed(self.traits_of(model), {}, batch, route)
            requests = [{"content": {"parts": [{"text": text}]}, "embedContentConfig": config} for text in batch.inputs]
            return _at_location(post(self.traits, model_path(_BATCH_PATH, model), {"requests": requests}, batch, route))
        parameters = completed(self.traits, {}, batch, route)
        common = {name: parameters.pop(name) for name in _OF_AN_INSTANCE if name in parameters}
        instances = [{"content": text, **common} for text in batch.inputs]
        body = {"instances": instances, "parameters": parameters}
        return _at_location(post(self.traits, model_path(self.traits.path, model), body, batch, route))

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`predictions[].embeddings`, with the tokens of each and whether it was cut; else the Gemini API's reply."""
        if b'"predictions"' not in reply.body:
            return super().parse_reply(reply, batch, route)
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        embedded = [prediction.embeddings for prediction in answer.predictions]
        statistics = [each.statistics if isinstance(each.statistics, dict) else {} for each in embedded]
        return embedding_reply(
            lambda: float_rows([each.values for each in embedded], batch, route),
            _token_sum([each.get("token_count") for each in statistics]),
            batch,
            truncated=[position for position, each in enumerate(statistics) if each.get("truncated") is True],
        )


def _token_sum(counts: Sequence[object]) -> Sequence[object]:
    """The tokens of all texts, where each text has a count. Some are floats."""
    numbers = [count for count in counts if isinstance(count, int | float)]
    return (sum(numbers),) if numbers and len(numbers) == len(counts) else ()


def _at_location(request: UpstreamRequest) -> UpstreamRequest:
    """The request at the host of its location: that of `global` has no prefix."""
    return replace(request, url=request.url.replace("https://global-aiplatform.", "https://aiplatform.", 1))
