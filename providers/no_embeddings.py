"""Vendors that have no embeddings API: a route to one answers with what to use instead, and calls nobody."""

from __future__ import annotations

from models.embedding import Batch, Route
from models.errors import EmbeddingsUnsupported, UpstreamError
from providers.base import EmbeddingReply, Provider, UpstreamReply, UpstreamRequest
from providers.traits import Traits


class NoEmbeddingsProvider(Provider):
    """A kind that cannot embed."""

    def __init__(self, traits: Traits) -> None:
        self.traits = traits

    def request(self, batch: Batch, route: Route) -> UpstreamRequest:
        """Raises EmbeddingsUnsupported."""
        raise self._error()

    def parse_reply(self, reply: UpstreamReply, batch: Batch, route: Route | None = None) -> EmbeddingReply:
        """Raises EmbeddingsUnsupported."""
        raise self._error()

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """The error of every reply."""
        return self._error()

    def rate_limits(self, reply: UpstreamReply) -> None:
        """None: nobody is called."""

    def _error(self) -> EmbeddingsUnsupported:
        return EmbeddingsUnsupported(
            f"the provider cannot embed: {self.traits.title}", advice="name a provider that can embed in the route"
        )
