"""What adapters of JSON wire formats share: errors by the table, and rate limits by the usual headers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.errors import UpstreamError
from providers.base import Provider, UpstreamReply
from providers.error_envelope import ErrorFacts, error_facts
from providers.error_map import error_from
from providers.rate_limit_headers import RateLimitHeaders, parse_rate_limit_headers


class JsonProvider(Provider):
    """Base of adapters. A subclass builds requests and reads replies; `facts` is its place for a vendor's oddities."""

    def error_from(self, reply: UpstreamReply) -> UpstreamError:
        """Structured code and status first, then words where vendors give nothing else."""
        return error_from(self.facts(reply), reply.headers)

    def facts(self, reply: UpstreamReply) -> ErrorFacts:
        """What the error reply says."""
        return error_facts(reply.status, reply.body, detail_is_message=self.traits.detail_is_message)

    def error_in_success(self, reply: UpstreamReply, document: Any) -> UpstreamError | None:
        """The error that came with a status of success, as gateways send them; None: the document holds none."""
        status = self.status_in_success(document)
        return None if status is None else self.error_from(replace(reply, status=status))

    def status_in_success(self, document: Any) -> int | None:
        """The status that the error of such a document stands for; None: it holds no error."""
        error = document.get("error") if isinstance(document, dict) else None
        if not error:
            return None
        return error_status(error.get("code") if isinstance(error, dict) else None)

    def rate_limits(self, reply: UpstreamReply) -> RateLimitHeaders | None:
        """The `x-ratelimit-*` headers, which many vendors and servers send."""
        return parse_rate_limit_headers(reply.headers)


def error_status(code: object) -> int:
    """The code where it is an error's status, else that of a gateway with a bad reply."""
    return code if isinstance(code, int) and 400 <= code < 600 else 502
