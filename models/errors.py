"""Every error embedmill raises on purpose, and what to do next about each.

An error carries a `disposition`; the engine acts on that and on nothing else. HTTP status codes of *our* answers live
in `api/errors.py`; how a provider's status becomes one of these classes is in that provider's `fault`.
"""

from __future__ import annotations

from enum import StrEnum


class Disposition(StrEnum):
    """What to do next about an error."""

    FAIL = "fail"  # asking again gives the same answer
    RETRY = "retry"  # the same route may succeed later
    FAILOVER = "failover"  # this route is unfit now; another of the same space may do
    SPLIT = "split"  # too large, or one input in it is poison: halve and go on


class EmbedmillError(Exception):
    """The root: `code` is for programs, `message` for people, `param` names the guilty field."""

    code = "internal_error"
    disposition = Disposition.FAIL
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s


# --- The caller must change something ---------------------------------------------------------------------------------


class RequestError(EmbedmillError):
    code = "invalid_request"


class InvalidInput(RequestError):
    code = "invalid_input"


class InputTooLong(RequestError):
    code = "input_too_long"


class UnknownAlias(RequestError):
    code = "model_not_found"


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class UnsupportedMediaType(RequestError):
    code = "unsupported_media_type"


class PayloadTooLarge(RequestError):
    code = "payload_too_large"


class ContentBlocked(RequestError):
    code = "content_filter"


class NotAuthenticated(RequestError):
    code = "invalid_api_key"


class NotPermitted(RequestError):
    code = "permission_denied"


class JobNotFound(RequestError):
    code = "job_not_found"


class Conflict(RequestError):
    """The thing is in a state that forbids the call. `should_retry` tells SDKs, which retry 409 by themselves."""

    code = "conflict"

    def __init__(self, message: str, *, code: str | None = None, should_retry: bool = False) -> None:
        super().__init__(message, code=code)
        self.should_retry = should_retry


class IdempotencyMismatch(RequestError):
    code = "idempotency_key_reused"


# --- The remote side --------------------------------------------------------------------------------------------------


class UpstreamError(EmbedmillError):
    """The remote side failed. `sent` is False only when the request surely never reached it, so was not billed."""

    code = "upstream_error"
    disposition = Disposition.RETRY
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        sent: bool = True,
        code: str | None = None,
        param: str | None = None,
        guilty: int | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after_s=retry_after_s)
        self.status = status
        self.sent = sent
        # Position in the batch of the one input that the upstream named, where it named one.
        self.guilty = guilty


class UpstreamRateLimited(UpstreamError):
    code = "upstream_rate_limited"


class UpstreamTimeout(UpstreamError):
    code = "upstream_timeout"


class UpstreamUnavailable(UpstreamError):
    code = "upstream_unavailable"


class UpstreamOverloaded(UpstreamUnavailable):
    """Unavailable because it has too much to do: fewer calls at once may help."""


class UpstreamProtocolError(UpstreamError):
    """A 2xx that cannot be trusted: wrong count, index, width or number."""

    code = "upstream_protocol_error"


class UpstreamAuthFailed(UpstreamError):
    """Our credential was refused: the operator's fault, never the caller's."""

    code = "upstream_auth_failed"
    disposition = Disposition.FAILOVER
    retryable = False


class UpstreamTooLarge(UpstreamError):
    """The batch as a whole was too large. `limit` says for what: "inputs", "tokens" or "bytes" in one call."""

    code = "upstream_too_large"
    disposition = Disposition.SPLIT
    retryable = False

    def __init__(self, message: str, *, status: int | None = None, limit: str = "bytes") -> None:
        super().__init__(message, status=status)
        self.limit = limit


class UpstreamRejected(UpstreamError):
    """A refusal that will repeat for the same payload; some input in it may be poison."""

    code = "upstream_rejected"
    disposition = Disposition.SPLIT
    retryable = False


class UpstreamMisconfigured(UpstreamError):
    """A refusal that every input would meet alike (unknown upstream model, bad parameter): never bisected."""

    code = "upstream_misconfigured"
    disposition = Disposition.FAILOVER
    retryable = False


class EmbeddingsUnsupported(UpstreamError):
    code = "not_implemented"
    disposition = Disposition.FAILOVER
    retryable = False


class NoRoute(EmbedmillError):
    """The alias exists, but nothing can serve it now."""

    code = "no_route_available"
    retryable = True


class RouteQuarantined(NoRoute):
    """Every route left gives vectors of another space than it should, until an operator has looked."""

    code = "route_quarantined"


# --- Our own capacity -------------------------------------------------------------------------------------------------


class CapacityError(EmbedmillError):
    code = "overloaded"
    disposition = Disposition.RETRY
    retryable = True


class Overloaded(CapacityError):
    pass


class DeadlineExceeded(CapacityError):
    code = "deadline_exceeded"


class StorageUnavailable(CapacityError):
    """The database does not answer."""

    code = "storage_unavailable"


class ConfigError(EmbedmillError):
    """A configuration that cannot be used; the message says which key, and how to fix it."""

    code = "invalid_configuration"
