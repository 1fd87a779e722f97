"""Amazon Bedrock: one address and one form of errors, and a form of request for each family of models."""

from __future__ import annotations

from providers.bedrock.provider import BedrockProvider

__all__ = ["BedrockProvider"]
