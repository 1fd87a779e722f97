"""The provider of the fake: OpenAI's wire format, with the width of the route in the URL."""

from __future__ import annotations

import dataclasses

from models.embedding import Batch, Route
from providers.base import UpstreamRequest
from providers.openai import OPENAI, OpenAIProvider

FAKE = dataclasses.replace(
    OPENAI,
    kind="fake",
    title="invents its vectors from the texts; for tests, benches and dry runs",
    base_url="inproc://fake/v1",
    key_variables=(),
    source="",
)


class FakeProvider(OpenAIProvider):
    """OpenAI's wire format towards a fake upstream; the URL names the width, so that one fake serves all aliases."""

    def __init__(self) -> None:
        super().__init__(FAKE)

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """OpenAI's request, with the route's native width in the URL."""
        request = super().request(batch, route)
        return dataclasses.replace(request, url=f"{request.url}?width={route.width}")
