"""Amazon Bedrock's InvokeModel. The upstream model's name tells the family, and with it the form of the request.

Sources: botocore 1.44 `bedrock-runtime`, vercel/ai `packages/amazon-bedrock`, pydantic-ai `embeddings/bedrock.py`
(2026-11).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import quote

import msgspec

from models.embedding import Batch, Route
from models.errors import UpstreamMisconfigured
from providers.base import EmbeddingReply, UpstreamReply, UpstreamRequest
from providers.bedrock.families import BEDROCK, family_of
from providers.cohere import ByType
from providers.error_envelope import ErrorFacts
from providers.json_provider import JsonProvider
from providers.json_reply import Vectors, decode_reply, embedding_reply, float_rows, header_count
from providers.json_request import json_request
from providers.sigv4 import signed
from providers.traits import Traits

SERVICE = "bedrock"  # in signatures; the host says bedrock-runtime

Vector = list[float | None]


class _TitanTypes(msgspec.Struct):
    floats: Vector | None = msgspec.field(default=None, name="float")


class _NovaVector(msgspec.Struct):
    embedding: Vector


class _Reply(msgspec.Struct):
    """Titan fills `embedding` or `embeddingsByType`, Cohere and Nova `embeddings`, each in its own form."""

    embedding: Vector | None = None
    by_type: _TitanTypes | None = msgspec.field(default=None, name="embeddingsByType")
    embeddings: ByType | list[Vector | _NovaVector] | None = None
    titan_tokens: Any = msgspec.field(default=None, name="inputTextTokenCount")
    nova_tokens: Any = msgspec.field(default=None, name="inputTokenCount")
    error: Any = None


_REPLY = msgspec.json.Decoder(_Reply)


class BedrockProvider(JsonProvider):
    """POST /model/{model}/invoke, with a Bedrock API key or signed."""

    traits = BEDROCK

    def traits_of(self, upstream_model: str) -> Traits:
        """Those of the model's family: limits and fields differ."""
        family = family_of(upstream_model)
        return BEDROCK if family is None else family.traits

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """The family's body. Raises UpstreamMisconfigured for a model of no known family, or too many inputs."""
        family = family_of(route.upstream_model)
        if family is None:
            raise UpstreamMisconfigured(
                "the upstream model's name tells no family of Bedrock's embedding models",
                sent=False,
                advice="name a model, an inference profile or an ARN with Titan, Cohere or Nova embeddings in its name",
            )
        traits = family.traits
        if len(batch.inputs) > traits.limits.inputs_per_call:
            raise UpstreamMisconfigured(
                f"the upstream model takes {traits.limits.inputs_per_call} inputs in a call",
                sent=False,
                advice="leave max_inputs_per_call out of the route to providers.{account}",
            )
        if family.has_nested_fields:
            traits = replace(traits, width_field=None, input_type=None, truncate=None)
        path = traits.path.replace("{model}", quote(route.upstream_model, safe=""))
        return json_request(traits, path, family.body(batch), batch, route)

    def sign(self, request: UpstreamRequest, route: Route, now_s: float) -> UpstreamRequest:
        """With the account's IAM key. An account with a Bedrock API key, or with neither, is not signed for.

        Raises UpstreamMisconfigured where the account lacks a part of its IAM key.
        """
        account = route.account
        access_key_id = account.secrets.get("access_key_id")
        if account.api_key or not access_key_id:
            return request
        secret, region = account.secrets.get("secret_access_key"), account.settings.get("region")
        if not secret or not region:
            raise UpstreamMisconfigured(
                "the call cannot be signed: the account lacks a part of its IAM key, or its region",
                sent=False,
                advice="set secret_access_key and region of providers.{account}",
            )
        return signed(
            request,
            access_key_id=access_key_id,
            secret_access_key=secret,
            session_token=account.secrets.get("session_token"),
            region=region,
            service=SERVICE,
            now_s=now_s,
        )

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """The vectors of whichever family answers. Tokens are in a header, for Titan and Nova in the body too."""
        answer = decode_reply(reply.body, _REPLY, lambda document: self.error_in_success(reply, document))
        if answer.error and (error := self.error_in_success(reply, {"error": answer.error})) is not None:
            raise error
        counts = header_count(reply.headers, "x-amzn-bedrock-input-token-count")
        in_body = (each for each in (answer.titan_tokens, answer.nova_tokens) if each is not None)
        return embedding_reply(lambda: float_rows(_vectors(answer), batch, route), (*counts, *in_body), batch)

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """Beside the body: the type in the header, which may have a URL behind a colon."""
        facts = super().facts(reply)
        kind = reply.headers.get("x-amzn-errortype", "").partition(":")[0].strip().lower()
        return replace(facts, codes=facts.codes | {kind}) if 0 < len(kind) <= 100 else facts


def _vectors(answer: _Reply) -> Vectors:
    if isinstance(answer.embeddings, ByType):
        return answer.embeddings.float or []
    if answer.embeddings is not None:
        return [each.embedding if isinstance(each, _NovaVector) else each for each in answer.embeddings]
    of_titan = answer.by_type.floats if answer.by_type is not None else None
    vector = answer.embedding if of_titan is None else of_titan
    return [] if vector is None else [vector]
