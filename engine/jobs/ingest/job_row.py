"""The row of a new job, before its first input."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from engine.access.keys import Caller
from engine.config.settings import Settings
from engine.jobs.ingest.idempotency_mismatch import stored_options
from engine.jobs.ingest.sharding import JobSpec
from engine.jobs.scheduling.fair_share import initial_virtual_time
from engine.routing.option_warnings import option_warnings
from models.base import db_now
from models.job import JobStatus


def new_columns(caller: Caller, job_id: str, request_id: str) -> dict[str, Any]:
    """The columns that each new job begins with: whose it is, and counters at zero."""
    return {
        "id": job_id,
        "project": caller.project,
        "key_id": caller.key_id,
        "request_id": request_id,
        "ingested": 0,
        "completed": 0,
        "failed": 0,
        "open_shards": 0,
        "prompt_tokens": 0,
        "cost_usd": Decimal(0),
        "usage_estimated": False,
        "error_summary": [],
        "virtual_time": initial_virtual_time(caller.project),
        "created_at": db_now(),
        "upload_refused_inputs": 0,
        "rate_sample_done": 0,
        "rate_sample_tokens": 0,
        "prev_rate_sample_done": 0,
        "prev_rate_sample_tokens": 0,
        "version": 1,
    }


def initial_columns(settings: Settings, caller: Caller, spec: JobSpec, job_id: str) -> dict[str, Any]:
    """The columns of a native job in progress without inputs."""
    return new_columns(caller, job_id, spec.request_id) | {
        "status": JobStatus.IN_PROGRESS,
        "alias": spec.alias.name,
        "space": spec.alias.space,
        "dimensions": spec.width,
        "input_type": spec.options.input_type,
        "options": stored_options(spec),
        "metadata_": spec.metadata,
        "warnings": _warnings_of(spec),
        "max_cost_usd": spec.max_cost_usd,
        "expires_at": db_now() + settings.job_deadline_days * 86400.0,
    }


def _warnings_of(spec: JobSpec) -> list[dict[str, str]]:
    """What the job's routes leave out of its options, or lack in them."""
    return [
        {
            "code": "unsupported_parameter" if each.type == "unsupported" else each.type,
            "message": f"'{each.feature}': {each.details}",
        }
        for each in option_warnings(spec.options, spec.alias.routes)
    ]
