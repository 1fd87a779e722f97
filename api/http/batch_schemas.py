"""What the OpenAPI document shows of batches."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class BatchCreate(msgspec.Struct):
    """POST /v1/batches: with `input_file_id`, or with `requests` in the body."""

    endpoint: Literal["/v1/embeddings"]
    input_file_id: str | None = None
    requests: list[dict[str, Any]] | None = None  # {custom_id, body} each
    completion_window: str | None = None  # `24h`, or another number of hours or minutes; needed with a file
    metadata: dict[str, str] | None = None
    output_expires_after: dict[str, Any] | None = None  # {anchor: "created_at", seconds}
    model: str | None = None  # of requests whose body names none
    callback_url: str | None = None  # a webhook of this batch alone


class BatchErrorItem(msgspec.Struct):
    """What is wrong with a line of the input file, or with the file."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct):
    """The first errors of a validation."""

    object: Literal["list"]
    data: list[BatchErrorItem]


class BatchCounts(msgspec.Struct):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class BatchObject(msgspec.Struct):
    """A batch. Instants are unix seconds."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: dict[str, Any]
    metadata: dict[str, str] | None
    job_id: str  # the job that runs it: /v1/embeddings/jobs/{id}
    error_count: int  # of the validation; `errors` lists the first thousand


class BatchList(msgspec.Struct):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


DOCUMENTED = (BatchCreate, BatchObject, BatchList)
