"""Wire formats, one file each, and the registry of them. Pure: imports models only, and opens nothing."""

from __future__ import annotations

from providers.azure import AzureProvider
from providers.base import Provider
from providers.bedrock import BedrockProvider
from providers.cohere import CohereProvider
from providers.fake import FakeProvider
from providers.huggingface import HuggingFaceProvider
from providers.local import LocalProvider
from providers.no_embeddings import NoEmbeddingsProvider
from providers.ollama import OllamaProvider
from providers.openai import OpenAIProvider
from providers.openai_compatible import COMPATIBLE, WITHOUT_EMBEDDINGS
from providers.tei import TeiProvider

_FORMATS: tuple[Provider, ...] = (
    OpenAIProvider(),
    *(AzureProvider(row) if row.kind == "azure" else OpenAIProvider(row) for row in COMPATIBLE),
    CohereProvider(),
    BedrockProvider(),
    TeiProvider(),
    HuggingFaceProvider(),
    OllamaProvider(),
    *(NoEmbeddingsProvider(row) for row in WITHOUT_EMBEDDINGS),
    LocalProvider(),
    FakeProvider(),
)
PROVIDERS: dict[str, Provider] = {provider.traits.kind: provider for provider in _FORMATS}
"""All kinds, by name."""
