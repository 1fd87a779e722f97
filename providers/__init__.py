"""Wire formats, one file each, and the registry of them. Pure: imports models only, and opens nothing."""

from __future__ import annotations

from providers.base import Provider
from providers.fake import FakeProvider
from providers.local import LocalProvider
from providers.openai import OpenAIProvider

PROVIDERS: dict[str, Provider] = {
    "openai": OpenAIProvider(),
    "local": LocalProvider(),
    "fake": FakeProvider(),
}
