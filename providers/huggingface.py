"""Hugging Face's inference router. Its models run on TEI or in pipelines: the reply's form is checked, not assumed.

Dedicated Inference Endpoints are servers of the kind `tei`, at their own address.

Sources: huggingface_hub 2.4 `inference/_providers/hf_inference.py` (2026-11). No limits are published: those of TEI's
defaults are used.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from models.embedding import Batch, Limits, Route
from models.errors import UpstreamError, UpstreamProtocolError
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, float_rows
from providers.json_request import json_request
from providers.tei import TRUNCATE, feature_body
from providers.traits import Traits

Vector = list[float | None]


_REPLY = msgspec.json.Decoder(list[Vector | float | None])


class HuggingFaceProvider(JsonProvider):
    """POST /hf-inference/models/{model}/pipeline/feature-extraction."""

    traits = Traits(
        kind="huggingface",
        title="Hugging Face Inference, by its router",
        limits=Limits(inputs_per_call=32, tokens_per_input=8192, tokens_per_call=16_384, bytes_per_call=2_000_000),
        base_url="https://router.huggingface.co",
        path="/hf-inference/models/{model}/pipeline/feature-extraction",
        key_variables=("HF_TOKEN",),
        width_field="dimensions",
        truncate=TRUNCATE,
        body={"normalize": True},
        order="position",
        usage="none",
        source="huggingface_hub 2.4, 2026-11",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The inputs, always as a list. The slash of a model's name is a part of the path."""
        path = self.traits.path.replace("{model}", quote(route.upstream_model, safe="/"))
        return json_request(self.traits, path, feature_body(batch), batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """A list of vectors, or one vector for one input. Raises UpstreamProtocolError for vectors of tokens."""
        answer = decode_reply(
            reply.body, _REPLY, lambda document: self.error_in_success(reply, document) or _rank_error(document)
        )
        vectors: Vectors = [each for each in answer if isinstance(each, list)]
        if len(vectors) != len(answer):
            vectors = [_one_vector(answer, batch)]
        return EmbeddingReply(float_rows(vectors, batch, route), None)


def _one_vector(answer: list[Vector | float | None], batch: Batch) -> Vector:
    """A bare list of numbers, which some models answer for one input."""
    numbers: Vector = [each for each in answer if not isinstance(each, list)]
    if len(numbers) != len(answer) or len(batch.inputs) != 1:
        raise UpstreamProtocolError(f"the reply holds numbers where {len(batch.inputs)} vectors belong")
    return numbers


def _rank_error(document: Any) -> UpstreamError | None:
    """The error for a matrix in place of each vector; None for any other document."""
    for _ in range(2):
        if not isinstance(document, list) or not document:
            return None
        document = document[0]
    if not isinstance(document, list) or not document or not isinstance(document[0], list | float | int):
        return None
    return UpstreamProtocolError(
        "the reply holds a vector for each token, not for each input",
        route_fault=True,
        advice="name a model with pooling in the route: one for sentence similarity, not for feature extraction alone",
    )
