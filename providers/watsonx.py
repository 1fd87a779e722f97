"""IBM watsonx.ai. Vectors come in the order of the texts. The account's key is an IAM access token of about an hour.

Sources: from memory (M); only what `truncate_input_tokens` means is of watsonx-ai-node-sdk, EmbeddingParameters (2026).
"""

from __future__ import annotations

from typing import Any

import msgspec

from models.embedding import Batch, Limits, Route
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.error_envelope import ErrorFacts, facts_of
from providers.error_list import error_document, first_error
from providers.json_provider import JsonProvider, error_status
from providers.json_reply import Vector, decode_reply, embedding_reply, float_rows
from providers.json_request import completed, post
from providers.traits import MappedField, Setting, Traits

# Codes of IBM's that the table of errors has other words for. M
_CODES = {"model_not_supported": "model_not_found", "token_quota_reached": "insufficient_quota"}


class _Result(msgspec.Struct):
    embedding: Vector = None


class _Reply(msgspec.Struct):
    results: list[_Result]
    model_id: Any = None
    input_token_count: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class WatsonxProvider(JsonProvider):
    """POST /ml/v1/text/embeddings."""

    traits = Traits(
        kind="watsonx",
        title="IBM watsonx.ai; its key is an IAM access token",
        # 1,000 texts, and 512 tokens a text, those of the slate and the granite models: M. None is known for the tokens
        # of a call: the number is ours.
        limits=Limits(
            inputs_per_call=1000, tokens_per_input=512, tokens_per_call=300_000, bytes_per_call=8 * 1024 * 1024
        ),
        base_url="https://{region}.ml.cloud.ibm.com",
        path="/ml/v1/text/embeddings?version=2024-05-02",
        key_variables=("WATSONX_TOKEN",),  # M
        settings={
            "region": Setting("the region of the service", default="us-south"),
            "project_id": Setting("the id of the watsonx.ai project that pays for the calls"),
        },
        # Inside of `parameters`. For "end" it is the route's limit; 0 cuts nothing, which refuses what is too long.
        truncate=MappedField("truncate_input_tokens", {"none": 0, "mean": 0, "end": "the model's limit"}),
        order="position",
        source="from memory (M), watsonx-ai-node-sdk 2026",
    )

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The texts for the account's project; the length at which they are cut is one of the `parameters`."""
        parameters = completed(self.traits, {}, batch, route)
        if batch.options.truncate == "end":
            parameters["truncate_input_tokens"] = route.limits.tokens_per_input
        body: dict[str, object] = {"model_id": route.upstream_model, "inputs": batch.inputs, "parameters": parameters}
        if project := route.account.settings.get("project_id"):
            body["project_id"] = project
        return post(self.traits, self.traits.path, body, batch, route)

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """`results[].embedding`; tokens are `input_token_count`."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        return embedding_reply(
            lambda: float_rows([result.embedding for result in answer.results], batch, route),
            () if answer.input_token_count is None else (answer.input_token_count,),
            batch,
            answer.model_id,
        )

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """The first of `errors`, where there is one."""
        error = first_error(error_document(reply.body))
        if not error:
            return super().facts(reply)
        code = error.get("code")
        known = _CODES.get(code, code) if isinstance(code, str) else None
        return facts_of(reply.status, {"error": {**error, "code": known}})

    def status_in_success(self, document: Any) -> int | None:
        """The `status_code` beside `errors`."""
        if first_error(document):
            return error_status(document.get("status_code"))
        return super().status_in_success(document)
