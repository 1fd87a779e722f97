"""What adapters of JSON wire formats share: errors by the table, and rate limits by the usual headers."""

from __future__ import annotations

from typing import Any

from models.errors import UpstreamError
from providers.base import UpstreamReply
from providers.error_envelope import ErrorFacts, error_facts, facts_of
from providers.error_map import error_from
from providers.rate_limit_headers import RateLimitHeaders, parse_rate_limit_headers
from providers.traits import Traits


class JsonProvider:
    """Base of adapters. A subclass builds requests and reads replies; `facts` is its place for a vendor's oddities."""

    traits: Traits

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """Structured code and status first, then words where vendors give nothing else."""
        return error_from(self.facts(reply), reply.headers)

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """What the error reply says."""
        return error_facts(reply.status, reply.body, detail_is_message=self.traits.detail_is_message)

    def error_in_success(self, reply: UpstreamReply, document: Any) -> UpstreamError | None:
        """The error that came with a status of success, as gateways send them; None: the document holds none."""
        error = document.get("error") if isinstance(document, dict) else None
        if not error:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 600 else 502
        facts = facts_of(status, document, detail_is_message=self.traits.detail_is_message)
        return error_from(facts, reply.headers)

    def rate_limits(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """The `x-ratelimit-*` headers, which many vendors and servers send."""
        return parse_rate_limit_headers(reply.headers)
