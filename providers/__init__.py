"""Wire formats, one file each, and the registry of them. Pure: imports models only, and opens nothing."""

from __future__ import annotations

from providers.azure import AzureProvider
from providers.base import Provider
from providers.bedrock import BedrockProvider
from providers.cloudflare import CloudflareProvider
from providers.cohere import CohereProvider
from providers.dashscope import DashScopeProvider
from providers.fake import FakeProvider
from providers.google import GoogleProvider
from providers.huggingface import HuggingFaceProvider
from providers.local import LocalProvider
from providers.no_embeddings import NoEmbeddingsProvider
from providers.nomic import NomicProvider
from providers.ollama import OllamaProvider
from providers.openai import OpenAIProvider
from providers.openai_compatible import COMPATIBLE, WITHOUT_EMBEDDINGS
from providers.perplexity import PerplexityProvider
from providers.snowflake import SnowflakeProvider
from providers.tei import TeiProvider
from providers.vertex import VertexProvider
from providers.watsonx import WatsonxProvider

_FORMATS: tuple[Provider, ...] = (
    OpenAIProvider(),
    *(AzureProvider(row) if row.kind == "azure" else OpenAIProvider(row) for row in COMPATIBLE),
    CohereProvider(),
    BedrockProvider(),
    TeiProvider(),
    HuggingFaceProvider(),
    OllamaProvider(),
    GoogleProvider(),
    VertexProvider(),
    NomicProvider(),
    DashScopeProvider(),
    CloudflareProvider(),
    SnowflakeProvider(),
    WatsonxProvider(),
    PerplexityProvider(),
    *(NoEmbeddingsProvider(row) for row in WITHOUT_EMBEDDINGS),
    LocalProvider(),
    FakeProvider(),
)
PROVIDERS: dict[str, Provider] = {provider.traits.kind: provider for provider in _FORMATS}
"""All kinds, by name."""
