"""Wire models: what clients send, and what the OpenAPI document shows of what they get."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from api.http import batch_schemas, file_schemas, webhook_schemas
from api.http.model_schemas import EndpointList
from api.http.webhook_schemas import JobWebhook
from engine.corpus.lines import TextLine
from engine.embedding.request_body import EmbeddingRequest, Positive, ShortText


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings/jobs with a JSON body."""

    model: str
    input: str | list[str | int | list[int] | TextLine] | None = None  # this one, or the next
    input_file_id: str | None = None  # a file of the purpose user_data
    text_column: ShortText | None = None  # of such a file
    id_column: ShortText | None = None
    dimensions: Positive | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815
    metadata: dict[str, str] | None = None
    max_cost_usd: str | int | float | None = None
    webhook: JobWebhook | None = None
    dry_run: bool | None = None


class JobQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a streamed corpus, as query parameters."""

    model: str
    dimensions: Positive | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    metadata: str | None = None  # a JSON object of strings
    text_column: ShortText | None = None
    id_column: ShortText | None = None
    max_cost_usd: str | None = None
    webhook: str | None = None  # a URL, or a JSON object as in a JSON body
    dry_run: bool | None = None


class ResumeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings/jobs/{id}/resume; the body may be left out."""

    max_cost_usd: str | int | float | None = None  # a new ceiling, for the whole job


class Usage(msgspec.Struct):
    """Tokens of a sync request."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct):
    """One vector of a sync answer."""

    object: Literal["embedding"]
    index: int
    embedding: str | list[float]
    truncated: bool = False  # true where the text was not embedded whole; else left out


class EmbeddingResponse(msgspec.Struct):
    """The answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    id: str  # that of the record of the call, `generationId`
    created: int  # unix seconds
    providerMetadata: dict[str, Any]  # noqa: N815


class JobCounts(msgspec.Struct):
    """How many inputs of a job are where."""

    total: int | None
    completed: int
    failed: int
    pending: int


class JobRate(msgspec.Struct):
    """How fast a job moves now."""

    inputs_per_second: float
    tokens_per_minute: int


class JobWarning(msgspec.Struct):
    """Something that a job's owner should know and that is no error."""

    code: str
    message: str


class JobError(msgspec.Struct):
    """The inputs of a job that failed for one reason."""

    code: str
    count: int
    example_index: int | None
    message: str


class JobAmbiguous(msgspec.Struct):
    """Calls that were sent and never answered, and the inputs in them: the provider may have billed them.

    `tokens` are estimated, and `cost_usd` is the most that they can have cost: not part of the job's `cost_usd`, but
    counted against `max_cost_usd`.
    """

    calls: int
    inputs: int
    tokens: int
    cost_usd: str


class JobWasted(msgspec.Struct):
    """Calls that were billed and brought nothing: replies that were refused, or came too late, and tests of a route.

    Their cost is part of the job's `cost_usd`; their tokens are not in its `usage`.
    """

    calls: int
    inputs: int
    tokens: int
    cost_usd: str


class JobWaiting(msgspec.Struct):
    """The outage that a job waits for: which account, why, what the operator does, since when, and the next try."""

    provider: str
    code: str
    message: str
    advice: str
    since: int
    next_attempt_at: int


class JobObject(msgspec.Struct):
    """A bulk job, as a poll shows it. Instants are unix seconds."""

    id: str
    object: Literal["embedding.job"]
    status: Literal[
        "validating",
        "in_progress",
        "paused",
        "completed",
        "completed_with_errors",
        "failed",
        "cancelling",
        "cancelled",
        "expired",
    ]
    model: str | None  # these three: null until a batch is validated, and where its requests differ in them
    space: str | None
    dimensions: int | None
    input_type: str | None  # the meaning of its inputs, which is a part of what its vectors are
    counts: JobCounts
    progress: float
    usage: Usage
    cost_usd: str
    max_cost_usd: str | None
    usage_estimated: bool
    truncated: int  # inputs with a vector that were not embedded whole
    deduplicated_inputs: int  # copies of a vector of the same job: no call was made for them
    ambiguous: JobAmbiguous
    wasted: JobWasted
    rate: JobRate
    eta_seconds: int | None
    waiting_on: Literal["quota", "provider", "concurrency", "database", "budget", "fairness", "ingest"] | None
    next_attempt_at: int | None
    waiting: JobWaiting | None
    errors: list[JobError]
    warnings: list[JobWarning]
    created_at: int
    started_at: int | None
    finished_at: int | None
    expires_at: int
    metadata: dict[str, str]
    request_id: str
    batch_id: str | None  # the batch that the job runs
    input_file_id: str | None  # the file that its inputs come from


class JobEstimate(msgspec.Struct):
    """What a corpus would become as a job: the answer to `dry_run`."""

    object: Literal["embedding.job.estimate"]
    model: str
    space: str
    dimensions: int
    inputs: int
    usable_inputs: int
    refused_inputs: int
    duplicates: int  # of the usable ones: embedded and billed once
    errors: list[JobError]
    tokens: int  # to be billed
    tokens_margin: int  # how far a sampled count may be off, in 19 of 20 cases; 0: all was counted
    estimated: bool  # sampled, or the model's own tokenizer is not at hand
    calls: int
    cost_usd: str
    cost_usd_with_duplicates: str
    eta_seconds: int | None  # what the accounts' quotas alone take; null where there are none
    max_cost_usd: str | None  # the requested ceiling
    within_max_cost: bool | None  # whether `cost_usd`, with the margin of its tokens, keeps to it


class RouteCalls(msgspec.Struct):
    """Calls of one kind on one route."""

    calls: int
    inputs: int
    tokens: int
    cost_usd: str


class JobRoute(msgspec.Struct):
    """One account and upstream model, and what it did for a job."""

    provider: str
    upstream_model: str
    share: float  # of the inputs that have a vector
    delivered: RouteCalls
    wasted: RouteCalls
    ambiguous: RouteCalls
    codes: dict[str, int]  # calls without a result, by the code of their error


class JobRoutes(msgspec.Struct):
    """The routes of a job, the one with the most inputs first."""

    object: Literal["list"]
    data: list[JobRoute]


class JobList(msgspec.Struct):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[JobObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorBody(msgspec.Struct):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct):
    """The body of every answer that is an error."""

    error: ErrorBody


DOCUMENTED = (
    EmbeddingRequest,
    EmbeddingResponse,
    JobRequest,
    ResumeRequest,
    JobObject,
    JobEstimate,
    JobList,
    JobRoutes,
    EndpointList,
    *batch_schemas.DOCUMENTED,
    *file_schemas.DOCUMENTED,
    ErrorEnvelope,
    *webhook_schemas.DOCUMENTED,
)
