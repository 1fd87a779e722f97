"""POST /v1/embeddings/jobs/{job_id}/{cancel,pause,resume,retry} and DELETE: change a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.http import params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.json_response import json_response
from api.http.schemas import ResumeRequest
from api.jobs.render import job_response
from engine.embedding.body_errors import decode
from engine.job_store import JobStore
from engine.jobs.composition import dispatcher_of
from engine.jobs.control import pause_resume, retry, termination
from engine.jobs.reading import job_rows
from engine.jobs.recording import cost_limit

_RESUME = msgspec.json.Decoder(ResumeRequest)
MAX_RESUME_BYTES = 4096


async def cancel_job(request: Request) -> Response:
    """Cancel the job; finished work is kept."""
    return await _job_action(request, termination.cancel)


async def pause_job(request: Request) -> Response:
    """Make no new calls for the job until it is resumed."""
    return await _job_action(request, pause_resume.pause)


async def resume_job(request: Request) -> Response:
    """Let a paused job go on, under a new cost ceiling when the body names one."""
    params.reject_unknown_params(request)
    body = await request_body.read_body(request, MAX_RESUME_BYTES)
    resume = decode(_RESUME, body) if body.strip() else ResumeRequest()
    ceiling = None if resume.max_cost_usd is None else cost_limit.parse_max_cost(resume.max_cost_usd)
    dispatcher = dispatcher_of(runtime_of(request))
    return await _job_action(request, partial(pause_resume.resume, max_cost_usd=ceiling, dispatcher=dispatcher))


async def retry_job(request: Request) -> Response:
    """Try the failed inputs of a finished job again."""
    return await _job_action(request, partial(retry.retry, dispatcher=dispatcher_of(runtime_of(request))))


async def delete_job(request: Request) -> Response:
    """Remove the job and its results."""
    job_id = await _job_id(request)
    await termination.delete_job(runtime_of(request).store, caller_of(request).project, job_id)
    return json_response({"id": job_id, "object": "embedding.job", "deleted": True})


async def _job_action(request: Request, action: Callable[[JobStore, str, str], Awaitable[None]]) -> Response:
    """Apply `action` to the job of the request. Returns the job object as it is afterwards."""
    params.reject_unknown_params(request)
    store, project, job_id = runtime_of(request).store, caller_of(request).project, await _job_id(request)
    await action(store, project, job_id)
    return job_response(await job_rows.get_job(store, project, job_id), 200, {})


async def _job_id(request: Request) -> str:
    """The id of the job in the path; of a batch in its place, the id of the job that runs it. Raises JobNotFound."""
    job_id: str = request.path_params["job_id"]
    if not job_rows.BATCH_ID.match(job_id):
        return job_id
    row = await job_rows.get_job(runtime_of(request).store, caller_of(request).project, job_id)
    return str(row.id)
