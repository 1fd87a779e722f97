"""The families of Bedrock's embedding models: what each takes, as a row, and the body of its requests.

Sources: AWS "Titan Embeddings parameters", "Cohere Embed v3", "Cohere Embed v4", "Nova multimodal embeddings", seen
2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from models.embedding import Batch, Limits
from providers.cohere import INPUT_TYPES
from providers.traits import MappedField, Setting, Traits

_MIB = 1024 * 1024
_ONE_INPUT = Limits(inputs_per_call=1, tokens_per_input=8192, tokens_per_call=8192, bytes_per_call=_MIB)

# What holds for the kind as a whole: the limits are the tightest, the fields those of Cohere's models.
BEDROCK = Traits(
    kind="bedrock",
    title="Amazon Bedrock: Titan, Cohere and Nova embeddings",
    limits=_ONE_INPUT,
    base_url="https://bedrock-runtime.{region}.amazonaws.com",
    path="/model/{model}/invoke",
    key_variables=("AWS_BEARER_TOKEN_BEDROCK",),
    settings={
        "region": Setting("the AWS region: us-east-1", variables=("AWS_REGION", "AWS_DEFAULT_REGION")),
        "access_key_id": Setting(
            "an IAM key, for signed calls instead of api_key",
            is_optional=True,
            is_secret=True,
            variables=("AWS_ACCESS_KEY_ID",),
        ),
        "secret_access_key": Setting(
            "the secret of the IAM key", is_optional=True, is_secret=True, variables=("AWS_SECRET_ACCESS_KEY",)
        ),
        "session_token": Setting(
            "of temporary IAM keys", is_optional=True, is_secret=True, variables=("AWS_SESSION_TOKEN",)
        ),
    },
    # The field is required, as at Cohere.
    input_type=MappedField("input_type", INPUT_TYPES, default="search_document"),
    truncate=MappedField("truncate", {"none": "NONE", "mean": "NONE", "end": "END"}),
    order="position",
    is_signed=True,
    source="AWS Bedrock user guide, botocore 1.44, 2026-11",
)
TITAN_V1 = replace(BEDROCK, input_type=None, truncate=None)  # it refuses any field but the text
TITAN_V2 = replace(TITAN_V1, width_field="dimensions", body={"normalize": True})
# 96 texts of at most 2,048 characters each.
COHERE_V3 = replace(BEDROCK, limits=Limits(96, 512, 96 * 512, 8 * _MIB))
COHERE_V4 = replace(
    BEDROCK,
    limits=Limits(96, 128_000, 128_000, 8 * _MIB),
    width_field="output_dimension",
    # AWS names LEFT and RIGHT, Vercel's SDK START and END; without the field too long texts are refused.
    truncate=MappedField("truncate", {"end": "RIGHT"}),
)
_PURPOSE = MappedField(
    "embeddingPurpose",
    {
        "query": "TEXT_RETRIEVAL",
        "document": "GENERIC_INDEX",
        "classification": "CLASSIFICATION",
        "clustering": "CLUSTERING",
    },
    default="GENERIC_INDEX",
)
_CUT = MappedField("truncationMode", {"none": "NONE", "mean": "NONE", "end": "END"}, default="NONE")
NOVA = replace(
    BEDROCK,
    limits=replace(_ONE_INPUT, tokens_per_input=8172, tokens_per_call=8172),
    width_field="embeddingDimension",
    input_type=_PURPOSE,
    truncate=_CUT,
)


@dataclass(frozen=True, slots=True)
class Family:
    """Models with one form of request."""

    traits: Traits
    body: Callable[[Batch], dict[str, object]]
    has_nested_fields: bool = False  # `body` places the fields of `traits`; else they are added at the root


def _titan_body(batch: Batch) -> dict[str, object]:
    return {"inputText": batch.inputs[0]}


def _cohere_body(batch: Batch) -> dict[str, object]:
    return {"texts": batch.inputs}


def _nova_body(batch: Batch) -> dict[str, object]:
    """The width is always named: the API's own default is not every model section's native width."""
    return {
        "schemaVersion": "nova-multimodal-embed-v1",
        "taskType": "SINGLE_EMBEDDING",
        "singleEmbeddingParams": {
            _PURPOSE.name: _PURPOSE.of(batch.options.input_type),
            "embeddingDimension": batch.width,
            "text": {_CUT.name: _CUT.of(batch.options.truncate), "value": batch.inputs[0]},
        },
    }


_TITAN_V1 = Family(TITAN_V1, _titan_body)
_COHERE_V3 = Family(COHERE_V3, _cohere_body)
_FAMILIES = {
    "amazon.titan-embed-text-v1": _TITAN_V1,
    "amazon.titan-embed-g1-text": _TITAN_V1,
    "amazon.titan-embed-text-v2": Family(TITAN_V2, _titan_body),
    "cohere.embed-english-v3": _COHERE_V3,
    "cohere.embed-multilingual-v3": _COHERE_V3,
    "cohere.embed-v4": Family(COHERE_V4, _cohere_body),
    "amazon.nova-2-multimodal-embeddings": Family(NOVA, _nova_body, has_nested_fields=True),
}
# Before the name: the beginning of an ARN, and the region of an inference profile (`us.`, `eu.`, `global.`).
_NAME = re.compile(rf"(?:arn:.*/)?(?:[a-z-]+\.)?({'|'.join(map(re.escape, _FAMILIES))})(?![a-z0-9])")


def family_of(upstream_model: str) -> Family | None:
    """The family that a model id, an inference profile or an ARN names; None where it names none."""
    found = _NAME.match(upstream_model)
    return _FAMILIES[found[1]] if found else None
