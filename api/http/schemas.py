"""Wire models: what clients send, and what the OpenAPI document shows of what they get."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from api.http.model_schemas import EndpointList
from engine.config.suggestions import did_you_mean
from engine.corpus.double_keys import double_key, has_quotes, quotes_in, quotes_in_items
from engine.corpus.lines import TextLine
from models.errors import InvalidInput, RequestError, UnsupportedParameter

Positive = Annotated[int, msgspec.Meta(ge=1)]
# Kept in text columns, which cannot hold NUL.
ShortText = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[^\x00]*\Z")]


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings: OpenAI's fields, and ours."""

    model: str
    input: str | list[str | int | list[int]]
    dimensions: Positive | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815  # the wire's spelling


class JobRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/embeddings/jobs with a JSON body."""

    model: str
    input: str | list[str | int | list[int] | TextLine]
    dimensions: Positive | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    providerOptions: dict[str, dict[str, Any]] | None = None  # noqa: N815
    metadata: dict[str, str] | None = None
    max_cost_usd: str | int | float | None = None
    dry_run: bool | None = None


class JobQuery(msgspec.Struct, forbid_unknown_fields=True):
    """Options of a streamed corpus, as query parameters."""

    model: str
    dimensions: Positive | None = None
    user: ShortText | None = None
    input_type: ShortText | None = None
    truncate: Literal["none", "end", "mean"] | None = None
    metadata: str | None = None  # a JSON object of strings
    max_cost_usd: str | None = None
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
    model: str
    space: str
    dimensions: int
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
    ErrorEnvelope,
)

# Where a parameter belongs that was sent to another call. Calls that know it themselves never look here.
BELONGS_TO = {
    "encoding_format": "GET /v1/embeddings/jobs/{id}/results",
    "metadata": "POST /v1/embeddings/jobs",
    "max_cost_usd": "POST /v1/embeddings/jobs",
    "dry_run": "POST /v1/embeddings/jobs",
    "providerOptions": "calls with a JSON body",
    "input": "calls with a JSON body",
}
OPTIONS = "providerOptions"
CHOICES = {"encoding_format": "'float' and 'base64'", "truncate": "'none', 'end' and 'mean'"}

Body = TypeVar("Body", bound=msgspec.Struct)


def decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    """Parse a JSON body. Raises InvalidInput or UnsupportedParameter that names the field, or the key it has twice."""
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise explain(error, decoder.type) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "it is empty; send a JSON object" if not body.strip() else "check quotes, commas and encoding (UTF-8)"
        raise InvalidInput(f"The body is not valid JSON: {reason}.", code="invalid_json") from error
    if not has_quotes(body, _quotes_of(value)) and (key := double_key(body)) is not None:
        raise double_key_error(key)
    return value


def _quotes_of(body: msgspec.Struct) -> int:
    """The quotes of the body, where it has no key twice and no null."""
    count = 0
    for name in body.__struct_fields__:
        value = getattr(body, name)
        if value is not None:
            count += 2 + (quotes_in_items(value) if name == "input" and type(value) is list else quotes_in(value))
    return count


def double_key_error(key: str) -> InvalidInput:
    """The error for a key that an object of the body has twice. `key`: its path."""
    return InvalidInput(f"The key '{key[:100]}' occurs twice: send it once.", param=key[:100], code="duplicate_key")


def explain(error: msgspec.ValidationError, schema: Any) -> RequestError:
    """A validation error in OpenAI's format, with the field in `param`. `schema`: the struct of the body."""
    text = str(error)
    reason, _, path = text.partition(" - at `")
    param = path.removesuffix("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    unknown = re.match(r"Object contains unknown field `(.*)`", reason, re.S)
    if unknown:
        name = f"{param}.{unknown[1]}" if param else unknown[1]
        words = _what_there_is(unknown[1], param, schema)
        return UnsupportedParameter(f"Unknown parameter: '{name}'.{words}", param=name, code="unknown_parameter")
    missing = re.match(r"Object missing required field `(.*)`", reason, re.S)
    if missing:
        name = f"{param}.{missing[1]}" if param else missing[1]
        return InvalidInput(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    wrong_choice = re.match(r"Invalid enum value '(.*)'", reason, re.S)
    if wrong_choice:
        return InvalidInput(
            f"Invalid value: '{wrong_choice[1][:100]}'. Supported values are: {CHOICES[param]}.",
            param=param,
            code="invalid_value",
        )
    code = "invalid_type" if reason.startswith("Expected `") and ", got `" in reason else "invalid_value"
    where = f"Invalid '{param}': " if param else "Invalid body: "
    words = reason.replace("`", "").replace("Expected ", "expected ", 1)
    return InvalidInput(f"{where}{words}.", param=param or None, code=code)


def _what_there_is(name: str, parent: str, schema: Any) -> str:
    """What may have been meant by an unknown parameter, or which ones are known."""
    names = TextLine.__struct_fields__ if parent.startswith("input") else schema.__struct_fields__
    if near := did_you_mean(name, names):
        return near
    if not parent and name in BELONGS_TO:
        return f" It is a parameter of {BELONGS_TO[name]}."
    send = f"To send it to a provider, write providerOptions.<provider>.{name[:100]}. " if OPTIONS in names else ""
    return f" {send}Leave it out; known are {', '.join(names)}."
