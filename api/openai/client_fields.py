"""Fields that clients of other servers send to POST /v1/embeddings, and what they mean here: data only.

A field is here because a client sends it by itself, or has a parameter for it; the version is the one it was seen in.
A value is mapped only where it means the same: any other is refused, since a vector of another kind would come unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

END_ONLY = "only the end of a text can be cut off here: send 'end', 'mean' or 'none'"
FLOATS_ONLY = "vectors come as 32-bit floats: leave it out"
UNIT_ONLY = "vectors come with length 1: leave it out"
NOT_HERE = "it has no exact counterpart here: send 'input_type' in its place"


@dataclass(frozen=True, slots=True)
class ClientField:
    """One field of a client."""

    name: str
    means: str | None  # our field; None: it asks for what is done anyway
    clients: str
    # What its values mean, without regard to case; None: they are numbers that mean the same here.
    words: Mapping[Any, str] | None = None
    otherwise: str = ""  # what is told to whoever sends another value


_CUT = {"none": "none", "end": "end", "mean": "mean", "right": "end", False: "none", True: "end"}
_GOOGLE = {
    "RETRIEVAL_QUERY": "query",
    "RETRIEVAL_DOCUMENT": "document",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
    "SEMANTIC_SIMILARITY": "similarity",
    "CODE_RETRIEVAL_QUERY": "code_query",
}
_NOMIC = {"search_query": "query", "search_document": "document"}
_JINA = {
    "retrieval.query": "query",
    "retrieval.passage": "document",
    "classification": "classification",
    "separation": "clustering",
    "text-matching": "similarity",
    "code.query": "code_query",
}

CLIENT_FIELDS = {
    field.name: field
    for field in (
        # 0: Infinity's word for the native width, sent by infinity-client at each call.
        ClientField("dimensions", "dimensions", "infinity-client 0.0.78 (0)"),
        ClientField("output_dimension", "dimensions", "voyageai 0.5, cohere 7.3, mistralai 3.7"),
        ClientField("outputDimension", "dimensions", "@langchain/community 0.3 (Voyage)"),
        ClientField("dimension", "dimensions", "dashscope 2.0"),
        ClientField("dimensionality", "dimensions", "nomic 3.9"),
        ClientField("outputDimensionality", "dimensions", "google-genai 3.4, @google/genai"),
        ClientField("output_dimensionality", "dimensions", "google-genai 3.4"),
        ClientField(
            "truncate",
            "truncate",
            "langchain-nvidia-ai-endpoints 1.5 (NONE, START, END), cohere 7.3, jina and TEI clients (true, false), "
            "Bedrock's Cohere v4 (NONE, LEFT, RIGHT)",
            _CUT,
            END_ONLY,
        ),
        ClientField("truncation", "truncate", "voyageai 0.5, langchain-voyageai 0.4", {False: "none", True: "end"}),
        ClientField(
            "truncate_prompt_tokens",
            "truncate",
            "vLLM 0.16's extra parameters by openai 3.52 (extra_body)",
            {-1: "end"},  # a number of tokens keeps the last ones
            "only -1, the model's own limit, has a counterpart here: " + END_ONLY,
        ),
        ClientField("truncation_side", None, "vLLM 0.16", {"right": ""}, END_ONLY),
        ClientField("truncation_direction", None, "huggingface_hub 2.4", {"right": ""}, END_ONLY),
        ClientField("task", "input_type", "Jina's API, LlamaIndex's JinaEmbedding", _JINA, NOT_HERE),
        ClientField("task_type", "input_type", "google-genai 3.4, nomic 3.9", _GOOGLE | _NOMIC, NOT_HERE),
        ClientField("taskType", "input_type", "@google/genai", _GOOGLE, NOT_HERE),
        ClientField("text_type", "input_type", "dashscope 2.0", {"query": "query", "document": "document"}, NOT_HERE),
        ClientField(
            "prompt_name",
            "input_type",
            "huggingface_hub 2.4, sentence-transformers 6.2",
            {"query": "query", "document": "document", "passage": "document"},
            NOT_HERE,
        ),
        ClientField("modality", None, "infinity-client 0.0.78", {"text": ""}, "inputs are texts: leave it out"),
        ClientField("output_dtype", None, "voyageai 0.5, mistralai 3.7", {"float": ""}, FLOATS_ONLY),
        ClientField("embedding_type", None, "Jina's API, NIM", {"float": ""}, FLOATS_ONLY),
        ClientField("embed_dtype", None, "vLLM 0.16", {"float32": ""}, FLOATS_ONLY),
        ClientField("normalize", None, "huggingface_hub 2.4, vLLM 0.11", {True: ""}, UNIT_ONLY),
        ClientField("normalized", None, "Jina's API, mixedbread", {True: ""}, UNIT_ONLY),
    )
}
# Fields without an effect here, which the answer's warnings name.
IGNORED_FIELDS = {"metadata": "litellm 1.109 and mistralai 3.7 (for records of calls)"}
# Becomes `providerOptions.gateway.tags`: litellm 1.109.
TAGS = "tags"
# Other servers' words for our `input_type`: Cohere's and NIM's.
INPUT_TYPE_WORDS = {"search_query": "query", "search_document": "document", "passage": "document"}
