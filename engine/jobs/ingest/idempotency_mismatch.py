"""Differences between a request and the job of its Idempotency-Key, for the error message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Row, select

from engine.jobs.ingest.sharding import JobSpec
from engine.storage.database import Database
from models.base import usd_text
from models.job import Job

_COLUMNS = (Job.alias, Job.dimensions, Job.max_cost_usd, Job.options, Job.metadata_.label("metadata"))
# Options that are shown with their values. The others may be long: only their names are shown.
_SHOWN_WITH_VALUES = {"model", "dimensions", "input_type", "truncate", "max_cost_usd"}
_NAMES = {"provider_options": "providerOptions"}


def stored_options(spec: JobSpec) -> dict[str, Any]:
    """The caller's options as the job stores them."""
    options = spec.options
    return {
        "input_type": options.input_type,
        "truncate": options.truncate,
        "user": options.user,
        "provider_options": options.provider_options,
    }


async def describe_differences(database: Database, job_id: str, spec: JobSpec) -> str:
    """The differences as one line of text; "" where the job was deleted. Raises StorageUnavailable."""
    async with database.read() as connection:
        row = (await connection.execute(select(*_COLUMNS).where(Job.id == job_id))).one_or_none()
    if row is None:
        return ""
    return "; ".join(_differences(row, spec)) or (
        "the options are the same, so the inputs differ, or the Content-Type or the spelling of the query"
    )


def _differences(row: Row[Any], spec: JobSpec) -> Iterator[str]:
    of_job = {
        "model": row.alias,
        "dimensions": row.dimensions,
        "max_cost_usd": row.max_cost_usd,
        "metadata": row.metadata,
    }
    of_request = {
        "model": spec.alias.name,
        "dimensions": spec.width,
        "max_cost_usd": spec.max_cost_usd,
        "metadata": spec.metadata,
    }
    of_job, of_request = of_job | dict(row.options), of_request | stored_options(spec)
    for name, value in of_request.items():
        if of_job.get(name) == value:
            continue
        if name in _SHOWN_WITH_VALUES:
            yield f"{name} of the job is {_shown(of_job.get(name))}, of this request {_shown(value)}"
        else:
            yield f"{_NAMES.get(name, name)} is another"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return repr(value[:100]) if isinstance(value, str) else str(value) if isinstance(value, int) else usd_text(value)
