"""Servers of OpenAI's wire format: one row for each, with what differs. A new one is a row here, and a fake profile.

M marks a fact from memory, I a careful choice of ours where nothing is published; the others are of the source named.
"""

from __future__ import annotations

from dataclasses import replace

from models.embedding import Limits
from providers.openai import OPENAI
from providers.traits import MappedField, Setting, Traits

_MIB = 1024 * 1024
_BASE64 = ("encoding_format", "base64")


def _limits(inputs: int, tokens_per_input: int = 8192, tokens_per_call: int = 300_000, mib: int = 8) -> Limits:
    return Limits(inputs, tokens_per_input, tokens_per_call, mib * _MIB)


def _vendor(
    kind: str, title: str, base_url: str, *variables: str, limits: Limits, source: str, **traits: object
) -> Traits:
    fields = {"base64": None, "width_field": "dimensions", **traits}
    return Traits(kind, title, limits, base_url, key_variables=variables, source=source, **fields)  # type: ignore[arg-type]


def _server(kind: str, title: str, base_url: str, *, limits: Limits, source: str, **traits: object) -> Traits:
    return _vendor(kind, title, base_url, limits=limits, source=source, **{"takes_bare_string": True, **traits})


COMPATIBLE = (
    replace(
        OPENAI,
        kind="azure",
        title="Azure OpenAI; the route's model is the deployment",
        base_url="{endpoint}/openai",
        path="/v1/embeddings",
        key_variables=("AZURE_OPENAI_API_KEY",),
        key_header="api-key",
        settings={
            "endpoint": Setting(
                "the resource's address: https://NAME.openai.azure.com", variables=("AZURE_OPENAI_ENDPOINT",)
            ),
            "api_version": Setting(
                "for the older address, with the deployment in its path",
                is_optional=True,
                variables=("OPENAI_API_VERSION",),
            ),
        },
        source="Microsoft Foundry REST, openai-python lib/azure.py, 2026-08",
    ),
    _vendor(
        "voyage",
        "Voyage AI, and MongoDB Atlas (keys that begin with al-)",
        "https://api.voyageai.com/v1",
        "VOYAGE_API_KEY",
        # 120,000 tokens a call for most models; the catalog has the others.
        limits=_limits(1000, 32_000, 120_000),
        takes_bare_string=True,
        width_field="output_dimension",
        base64=_BASE64,  # "float" is no value of the field
        input_type=MappedField("input_type", {"query": "query", "document": "document", "code_query": "query"}),
        truncate=MappedField("truncation", {"none": False, "mean": False, "end": True}),
        base_url_of_key={"al-": "https://ai.mongodb.com/v1"},
        detail_is_message=True,
        source="voyageai-python 0.5, docs.voyageai.com 2026-11",
    ),
    _vendor(
        "mistral",
        "Mistral",
        "https://api.mistral.ai/v1",
        "MISTRAL_API_KEY",
        limits=_limits(64, 8192, 16_000),  # I: 512 inputs were reported once, 16,384 tokens are the cap
        takes_bare_string=True,
        width_field="output_dimension",
        base64=_BASE64,
        source="mistralai/platform-docs-public 2026-08, client-python 3.7",
    ),
    _vendor(
        "jina",
        "Jina AI",
        "https://api.jina.ai/v1",
        "JINA_API_KEY",
        limits=_limits(512),
        base64=("embedding_type", "base64"),
        floats=("embedding_type", "float"),
        input_type=MappedField(
            "task",
            {
                "query": "retrieval.query",
                "document": "retrieval.passage",
                "classification": "classification",
                "clustering": "separation",
                "similarity": "text-matching",
                "code_query": "code.query",
            },
        ),
        truncate=MappedField("truncate", {"end": True}),
        body={"normalized": True},
        detail_is_message=True,
        source="api.jina.ai openapi 2026-11",
    ),
    _vendor(
        "together",
        "Together AI",
        "https://api.together.ai/v1",
        "TOGETHER_API_KEY",
        limits=_limits(128),  # I
        takes_bare_string=True,
        width_field=None,
        usage="none",
        source="together-python 3.1",
    ),
    _vendor(
        "fireworks",
        "Fireworks AI",
        "https://api.fireworks.ai/inference/v1",
        "FIREWORKS_API_KEY",
        limits=_limits(2048),
        body={"normalize": True},
        source="docs.fireworks.ai OpenAPI 2026-11",
    ),
    _vendor(
        "deepinfra",
        "DeepInfra",
        "https://api.deepinfra.com/v1/openai",
        "DEEPINFRA_API_KEY",
        "DEEPINFRA_TOKEN",
        limits=_limits(1024),
        takes_bare_string=True,
        cuts_silently=True,
        detail_is_message=True,  # M: in an object, {"detail": {"error": "…"}}
        source="vercel/ai packages/deepinfra 2026-08",
    ),
    _vendor(
        "openrouter",
        "OpenRouter",
        "https://openrouter.ai/api/v1",
        "OPENROUTER_API_KEY",
        limits=_limits(96),  # I: the cap is that of the provider behind it
        accepts_tokens=True,
        takes_bare_string=True,
        base64=_BASE64,
        input_type=MappedField(
            "input_type",
            {
                "query": "search_query",
                "document": "search_document",
                "classification": "classification",
                "clustering": "clustering",
            },
            is_passed_on=True,
        ),
        user_field="user",
        source="openrouter python SDK 1.3",
    ),
    _vendor(
        "vercel",
        "Vercel AI Gateway",
        "https://ai-gateway.vercel.sh/v1",
        "AI_GATEWAY_API_KEY",
        limits=_limits(96),  # I: the same
        takes_bare_string=True,
        base64=_BASE64,
        source="vercel/ai packages/gateway 2026-08",
    ),
    _vendor(
        "mixedbread",
        "Mixedbread",
        "https://api.mixedbread.com/v1",
        "MXBAI_API_KEY",
        limits=_limits(256),  # M
        takes_bare_string=True,
        base64=_BASE64,
        body={"normalized": True},
        cuts_silently=True,  # M
        source="mixedbread 0.54",
    ),
    _vendor(
        "nim",
        "NVIDIA NIM, hosted or your own",
        "https://integrate.api.nvidia.com/v1",
        "NVIDIA_API_KEY",
        limits=_limits(50),  # I: LangChain's batch
        base64=_BASE64,
        input_type=MappedField("input_type", {"query": "query", "document": "passage"}, default="passage"),
        truncate=MappedField("truncate", {"none": "NONE", "mean": "NONE", "end": "END"}),
        source="NIM text embedding API reference 1.3 to 1.5",
    ),
    _vendor(
        "databricks",
        "Databricks model serving; the route's model is the endpoint",
        "https://{workspace}",
        "DATABRICKS_TOKEN",
        limits=_limits(150),  # M
        path="/serving-endpoints/{model}/invocations",
        settings={
            "workspace": Setting(
                "the workspace's host: dbc-….cloud.databricks.com", variables=("DATABRICKS_WORKSPACE",)
            )
        },
        width_field=None,
        source="Databricks serving endpoints 2026-11",
    ),
    _server(
        "vllm",
        "vLLM",
        "http://127.0.0.1:8000/v1",
        limits=_limits(512),  # I: it has no cap
        accepts_tokens=True,
        base64=_BASE64,
        truncate=MappedField("truncate_prompt_tokens", {"end": -1}),
        source="vllm-project/vllm entrypoints/pooling 2026-10; 0.32.0, run 2026-11",
    ),
    _server(
        "sglang",
        "SGLang",
        "http://127.0.0.1:30000/v1",
        limits=_limits(256),  # I
        accepts_tokens=True,
        base64=_BASE64,  # releases before it ignored the field and gave floats
        source="sglang 0.5.23 entrypoints/openai/serving_embedding.py, protocol.py",
    ),
    _server(
        "infinity",
        "Infinity",
        "http://127.0.0.1:7997",
        limits=_limits(2048),
        base64=_BASE64,
        usage="characters",
        cuts_silently=True,
        narrow_is_unit=False,
        source="infinity-emb 0.0.78, run 2026-11",
    ),
    _server(
        "lmstudio",
        "LM Studio",
        "http://127.0.0.1:1234/v1",
        limits=_limits(64),  # I
        width_field=None,
        source="lmstudio-ai/docs 2026-04",
    ),
    _server(
        "llamacpp",
        "llama.cpp server",
        "http://127.0.0.1:8080/v1",
        limits=_limits(64),  # I
        accepts_tokens=True,
        base64=_BASE64,
        width_field=None,
        source="ggml-org/llama.cpp tools/server 2026-10; b10434, run 2026-11",
    ),
)
"""The rows of servers that embed."""


def _cannot_embed(kind: str, title: str) -> Traits:
    return Traits(kind, title, Limits(), base_url="https://invalid.invalid", can_embed=False, source="2026-11")


WITHOUT_EMBEDDINGS = (
    _cannot_embed("anthropic", "Anthropic: it has no embeddings API; it recommends Voyage"),
    _cannot_embed("groq", "Groq: it has no embeddings API"),
    _cannot_embed("xai", "xAI: it has no embeddings API"),
    _cannot_embed("deepseek", "DeepSeek: it has no embeddings API"),
)
"""Kinds that are known, so that a configuration that names one is told why nothing can be served."""
