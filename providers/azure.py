"""Azure OpenAI: OpenAI's wire format at an address of the resource's own. The route's model is the deployment.

Without `api_version` calls go to the v1 address, which names the deployment in the body; with it, to the older one,
which names it in the path.

Sources: Microsoft Foundry REST "Create an embedding", openai-python `lib/azure.py`, 2026-08.
"""

from __future__ import annotations

from urllib.parse import quote

from models.embedding import Route
from providers.openai import OpenAIProvider


class AzureProvider(OpenAIProvider):
    """Azure's two addresses; all else is OpenAI's."""

    def path(self, route: Route) -> str:
        """The path of the v1 address, or of the deployment where the account names an `api_version`."""
        version = route.account.settings.get("api_version")
        if not version:
            return self.traits.path
        return f"/deployments/{quote(route.upstream_model, safe='')}/embeddings?api-version={quote(version, safe='')}"
