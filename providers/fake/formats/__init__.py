"""The wire formats that the fake upstream can answer in, by the kind of provider whose adapter calls them."""

from __future__ import annotations

from collections.abc import Callable

from providers.fake.formats import clouds
from providers.fake.formats.bedrock import BEDROCK, BedrockFormat
from providers.fake.formats.cohere import COHERE, CohereFormat
from providers.fake.formats.format import FakeCall, FakeFormat
from providers.fake.formats.google import GOOGLE, VERTEX, GoogleFormat, VertexFormat
from providers.fake.formats.json_format import JsonFormat
from providers.fake.formats.nomic import NOMIC, NomicFormat
from providers.fake.formats.ollama import OLLAMA, OllamaFormat
from providers.fake.formats.openai import OpenAIFormat
from providers.fake.formats.openai_profiles import HOSTED
from providers.fake.formats.openai_shaped import OpenAIShapedFormat
from providers.fake.formats.profile import Profile
from providers.fake.formats.server_profiles import SERVERS, VLLM_BEFORE_2026
from providers.fake.formats.tei import HUGGING_FACE, TEI, TeiFormat

__all__ = ["FAKE_KINDS", "FakeCall", "FakeFormat", "fake_format"]

_ROWS: dict[str, tuple[Callable[[Profile, frozenset[str]], JsonFormat], Profile]] = {
    **{profile.kind: (OpenAIShapedFormat, profile) for profile in (*HOSTED, *SERVERS)},
    "cohere": (CohereFormat, COHERE),
    "google": (GoogleFormat, GOOGLE),
    "vertex": (VertexFormat, VERTEX),
    "nomic": (NomicFormat, NOMIC),
    "bedrock": (BedrockFormat, BEDROCK),
    "tei": (TeiFormat, TEI),
    "huggingface": (TeiFormat, HUGGING_FACE),
    "ollama": (OllamaFormat, OLLAMA),
    "dashscope": (clouds.DashScopeFormat, clouds.DASHSCOPE),
    "cloudflare": (clouds.CloudflareFormat, clouds.CLOUDFLARE),
    "snowflake": (clouds.SnowflakeFormat, clouds.SNOWFLAKE),
    "perplexity": (clouds.PerplexityFormat, clouds.PERPLEXITY),
}
# What a server of another version says: by the oddity that names it.
_OLD = {("vllm", "old_errors"): VLLM_BEFORE_2026}

FAKE_KINDS = ("openai", *_ROWS)
"""The kinds that have a fake."""


def fake_format(kind: str, oddities: frozenset[str] = frozenset()) -> FakeFormat:
    """The format of a kind. `oddities` switches what the vendor does only sometimes; each format names its own."""
    if kind == "openai":
        return OpenAIFormat()
    of, profile = _ROWS[kind]
    profile = next((old for (each, name), old in _OLD.items() if each == kind and name in oddities), profile)
    return of(profile, oddities)
