"""The job object as the command line reads it (fields it does not know are kept out of its way)."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from cli.errors import CODES, ExitCode, Failure

FINISHED = frozenset({"completed", "completed_with_errors", "failed", "cancelled", "expired"})


class Counts(msgspec.Struct):
    """How many inputs of a job are where."""

    total: int | None = None  # unknown until the whole corpus has been read
    completed: int = 0
    failed: int = 0
    pending: int | None = None

    @property
    def settled(self) -> int:
        """Inputs with an outcome, a vector or an error."""
        return self.completed + self.failed


class Rate(msgspec.Struct):
    """How fast a job moves now."""

    inputs_per_second: float | None = None
    tokens_per_minute: float | None = None


class Usage(msgspec.Struct):
    """Tokens of a job."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class ErrorGroup(msgspec.Struct):
    """All inputs that failed for one reason."""

    code: str
    count: int
    example_index: int | None = None
    message: str = ""


class Waiting(msgspec.Struct):
    """Which account a job waits for, why, since when (unix seconds), and when it is tried again."""

    provider: str = ""
    code: str = ""
    message: str = ""
    advice: str = ""
    since: float | None = None
    next_attempt_at: float | None = None


class Job(msgspec.Struct):
    """The job object."""

    id: str
    status: str
    model: str | None = None  # None: a batch with several
    dimensions: int | None = None
    counts: Counts = msgspec.field(default_factory=Counts)
    usage: Usage = msgspec.field(default_factory=Usage)
    cost_usd: Decimal = Decimal(0)
    max_cost_usd: Decimal | None = None  # the ceiling; None: there is none
    rate: Rate | None = None
    eta_seconds: float | None = None
    waiting_on: str | None = None
    waiting: Waiting | None = None
    errors: list[ErrorGroup] = []
    truncated: int = 0  # inputs with a vector that were not embedded whole
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None

    @property
    def finished(self) -> bool:
        """True once the status changes no more by itself."""
        return self.status in FINISHED

    @property
    def exit_code(self) -> ExitCode:
        """How a command that waited for this job ends."""
        if self.status == "completed":
            return ExitCode.DONE
        return CODES[Failure.INPUT_ERRORS if self.status == "completed_with_errors" else Failure.JOB]


class Estimate(msgspec.Struct):
    """The estimate for a corpus as a job."""

    model: str
    dimensions: int
    inputs: int
    refused_inputs: int
    duplicates: int
    tokens: int
    estimated: bool
    calls: int
    cost_usd: Decimal
    cost_usd_with_duplicates: Decimal
    tokens_margin: int = 0
    eta_seconds: float | None = None
    errors: list[ErrorGroup] = []
    max_cost_usd: Decimal | None = None
    within_max_cost: bool | None = None  # None: there is no ceiling

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a dry run: the one that the job would end with."""
        if self.within_max_cost is False:
            return CODES[Failure.JOB]
        return CODES[Failure.INPUT_ERRORS] if self.refused_inputs else ExitCode.DONE


class JobPage(msgspec.Struct):
    """A page of jobs."""

    data: list[Job]
    has_more: bool = False
    last_id: str | None = None


class InputFault(msgspec.Struct):
    """Why one input has no vector."""

    code: str
    message: str = ""


class InputErrorLine(msgspec.Struct):
    """One line of a job's errors."""

    index: int
    error: InputFault
    id: str | None = None


class Model(msgspec.Struct):
    """One model of the server."""

    id: str
    dimensions: int | None = None
    allowed_dimensions: list[int] | str | dict[str, int] | None = None
    max_input_tokens: int | None = None
    pricing: dict[str, str] = {}
    space: str | None = None
    providers: list[str] = []


class ModelList(msgspec.Struct):
    """The answer of /v1/models."""

    data: list[Model]


class Breaker(msgspec.Struct):
    """Why a route is not called, and when it is tried again."""

    state: str
    reason: str | None = None
    next_attempt_at: int | None = None


class Quota(msgspec.Struct):
    """A quota a minute, and what is left of it."""

    limit: int | None = None
    remaining: int | None = None


class Endpoint(msgspec.Struct):
    """One route of a model, as the process that answers knows it."""

    provider: str
    kind: str
    upstream_model: str
    priority: int
    weight: int
    pricing: dict[str, str]
    status: str
    breaker: Breaker
    latency_ms: dict[str, float | str | None]
    success_rate: dict[str, float | str | None]
    quota: dict[str, Quota]


class EndpointList(msgspec.Struct):
    """The answer of /v1/models/{model}/endpoints."""

    data: list[Endpoint]


class ErrorBody(msgspec.Struct):
    """An error of the API."""

    message: str = ""
    code: str | None = None
    param: str | None = None


class ErrorEnvelope(msgspec.Struct):
    """The body of an answer that is an error."""

    error: ErrorBody


def status_text(job: Job) -> str:
    """The status in words, and why a paused job is paused."""
    if job.status == "paused":
        return "paused, its budget is spent" if job.waiting_on == "budget" else "paused by its caller"
    return job.status.replace("_", " ")


def resume_effect(before: Job, after: Job) -> str:
    """What a resume has changed beside the status, to be put behind it; "" for a paused job that only goes on."""
    effects = [] if before.status == "paused" else ["it was not paused"]
    if before.max_cost_usd != after.max_cost_usd:
        effects.append(f"ceiling {_usd_text(before.max_cost_usd)} → {_usd_text(after.max_cost_usd)}")
    return f": {'; '.join(effects)}" if effects else ""


def _usd_text(amount: Decimal | None) -> str:
    return "none" if amount is None else f"${amount.normalize():f}"


def resume_hint(job: Job) -> str:
    """The command that resumes a paused job; the server refuses one whose budget is spent without a new ceiling."""
    is_spent = job.waiting_on == "budget" or (job.max_cost_usd is not None and job.cost_usd >= job.max_cost_usd)
    ceiling = " --max-cost USD" if is_spent else ""
    return f"`embedmill jobs resume {job.id}{ceiling}` lets it go on"
