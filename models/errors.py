"""Every error embedmill raises on purpose, and what to do next about each.

An error carries a `disposition`; the engine acts on that and on nothing else. HTTP status codes of *our* answers live
in `api/http/errors.py`; how a provider's status becomes one of these classes is in that provider's `error_from`.
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
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
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


class MalformedRequest(RequestError):
    """Bytes that are no HTTP request. The connection is closed after the answer."""

    code = "malformed_request"


class HeadersTooLarge(RequestError):
    """A head, or the trailers and chunk extensions of a body, beyond its bounds. The connection is closed."""

    code = "headers_too_large"


class UrlTooLong(RequestError):
    code = "url_too_long"  # a request line beyond its bound; the connection is closed


class RequestTimeout(RequestError):
    """The request did not arrive in time: its head, or progress of its body. The connection is closed."""

    code = "request_timeout"
    retryable = True


class ContentBlocked(RequestError):
    code = "content_filter"


class NotAuthenticated(RequestError):
    code = "invalid_api_key"


class NotPermitted(RequestError):
    code = "permission_denied"


class RateLimited(RequestError):
    """The caller's key has used up its share of a budget: others are served meanwhile."""

    code = "rate_limit_exceeded"
    retryable = True


class BodyTooSlow(RequestTimeout):
    """A body that arrives so slowly, or takes so long, that nobody waits for the rest of it."""

    code = "body_too_slow"


class JobNotFound(RequestError):
    code = "job_not_found"


class WebhookNotFound(RequestError):
    code = "webhook_not_found"  # of an endpoint, or of a delivery


class FileNotFound(RequestError):
    """Unknown, deleted, expired and foreign files look the same. The message is OpenAI's, which has no code."""

    code = "file_not_found"
    kind = "File"

    def __init__(self, object_id: str) -> None:
        super().__init__(f"No such {self.kind} object: {object_id[:100]}", param="id")


class UploadNotFound(FileNotFound):
    code = "upload_not_found"
    kind = "Upload"


class FileRefused(RequestError):
    """A file whose name, or whose first line, its purpose does not allow."""


class RangeNotSatisfiable(RequestError):
    code = "range_not_satisfiable"


class BatchNotFound(RequestError):
    code = "batch_not_found"  # or its output is there no more


class Conflict(RequestError):
    """The thing is in a state that forbids the call. `should_retry` tells SDKs, which retry 409 by themselves."""

    code = "conflict"

    def __init__(self, message: str, *, code: str | None = None, should_retry: bool = False) -> None:
        super().__init__(message, code=code)
        self.should_retry = should_retry


class BatchEnded(Conflict):
    code = "batch_ended"  # not shown: OpenAI's answer has none


class ResultsChanged(Conflict):
    """Rows went while a reader was at them: the job was deleted, has expired, or what failed of it runs again.

    In the middle of an answer it breaks off the connection, so that no client takes a part for the whole.
    """

    code = "results_changed"

    def __init__(self) -> None:
        super().__init__(
            "the job was deleted or run again while its results were read: read them again", should_retry=True
        )


class GenerationNotFound(RequestError):
    """Unknown, malformed or another project's: one answer for all."""

    code = "generation_not_found"


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
        offending_position: int | None = None,
        route_fault: bool = False,
        reported_tokens: int | None = None,
        advice: str = "",
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after_s=retry_after_s)
        self.status = status
        self.sent = sent
        # True where the route would answer any call like this one (a wrong width, base64 refused): settled after one
        # call, never retried or bisected.
        self.route_fault = route_fault
        # Tokens that a refused reply reported, so billed; None: it reported none that can be believed.
        self.reported_tokens = reported_tokens
        # What the operator does about it, in one sentence for logs, job status and `doctor`.
        self.advice = advice
        # The route that was called; set where the call is made.
        self.account = ""
        self.upstream_model = ""
        # Position in the batch of the one input that the upstream named, where it named one.
        self.offending_position = offending_position


class UpstreamRateLimited(UpstreamError):
    """The provider's rate limit is, or would be, reached. `quota`: "tokens" or "requests", where the provider says."""

    code = "upstream_rate_limited"
    quota = ""
    starts_cooldown = False  # all calls to the route wait, for a while
    is_own = False  # drawn by inputs of this batch alone, again and again, while a call of ours was answered


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
    """A refusal that will repeat for the same payload; some input in it may be poison.

    `token_limit` and `token_count`: what the provider itself named of an input that is too long, where it named it.
    """

    code = "upstream_rejected"
    disposition = Disposition.SPLIT
    retryable = False
    token_limit: int | None = None
    token_count: int | None = None


class UpstreamMisconfigured(UpstreamError):
    """A refusal that every input would meet alike (unknown upstream model, bad parameter): never bisected."""

    code = "upstream_misconfigured"
    disposition = Disposition.FAILOVER
    retryable = False


class EncodingRefused(UpstreamMisconfigured):
    """The route does not give vectors in the encoding that it was asked for (base64)."""

    code = "upstream_encoding_refused"


class EmbeddingsUnsupported(UpstreamError):
    code = "not_implemented"
    disposition = Disposition.FAILOVER
    retryable = False


class NoRoute(EmbedmillError):
    """The alias exists, but nothing can serve it now."""

    code = "no_route_available"
    retryable = True


class RouteDown(NoRoute):
    """Every route left is known to be down; the message names the account, the cause and what the operator does.

    Raised by routing without a call. Callers of sync requests see 503 with Retry-After; jobs wait.
    """


class RouteQuarantined(NoRoute):
    """Every route left gives vectors of another space than it should, until an operator has looked."""

    code = "route_quarantined"


# --- Our own capacity -------------------------------------------------------------------------------------------------


class CapacityError(EmbedmillError):
    code = "overloaded"
    disposition = Disposition.RETRY
    retryable = True


class Overloaded(CapacityError):
    """A budget of this process as a whole is used up, whoever uses it."""


class DeadlineExceeded(CapacityError):
    code = "deadline_exceeded"


class UploadInterrupted(CapacityError):
    """The process that received a corpus stood still for so long that its job was given up: 503, to be sent again."""

    code = "upload_interrupted"


class StorageUnavailable(CapacityError):
    """The database cannot be used now: no answer, read-only, full, locked. `advice`: what the operator does."""

    code = "storage_unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None, advice: str = "") -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.advice = advice


class StorageBlocked(StorageUnavailable):
    """The database answers, and refuses our statements until an operator acts: no such table, login, privilege."""


class ObjectsUnavailable(StorageUnavailable):
    """The object store cannot be used now: no answer, no space, no permission. `advice`: what the operator does."""

    code = "object_store_unavailable"


class ObjectMissing(EmbedmillError):
    """Bytes that the database knows are not in the object store: removed meanwhile, or lost."""

    code = "object_missing"


class BrokerUnavailable(CapacityError):
    """Redis or the broker cannot be used now. For logs: no caller meets it, for jobs wait in the database."""

    code = "broker_unavailable"

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class StorageRefused(EmbedmillError):
    """The database can never store these values. Callers see a 500; what was paid for is not paid for again."""

    code = "storage_refused"


class ConfigError(EmbedmillError):
    """A configuration that cannot be used; the message says which key, and how to fix it."""

    code = "invalid_configuration"
