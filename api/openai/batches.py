"""/v1/batches: create a batch from a file or from requests in the body; get, list and cancel batches."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http import media_types, params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.idempotency import REPLAYED, is_retry, reserved_key
from api.http.json_response import json_response, page_response
from api.http.webhooks import target_policy_of
from api.openai.batch_object import batch_object
from engine.batches.batch_rows import get_batch as batch_row
from engine.batches.batch_rows import list_batches as batch_page
from engine.batches.cancel import cancel_batch as cancel
from engine.batches.create import new_batch_id
from engine.batches.submit import ArrivingBody, submit_batch
from engine.batches.submit_parts import submit_parts_of

# Of one query, and of one step of rendering: a batch may have a thousand errors.
PAGE_ROWS = 10


async def create_batch(request: Request) -> Response:
    """Create a batch."""
    params.reject_unknown_params(request)
    media_type = media_types.media_type(request)
    if media_type != media_types.JSON:
        raise media_types.unsupported(media_type, [media_types.JSON])
    runtime, caller = runtime_of(request), caller_of(request)
    body = ArrivingBody(
        request_body.raw_chunks(request),
        request_body.body_decoder(request),
        lambda: request_body.check_client(request),
        lambda: runtime.keys.recheck(caller),
    )
    async with reserved_key(request, new_batch_id) as reserved:
        submitted = await submit_batch(
            submit_parts_of(runtime, target_policy_of(request)),
            caller,
            body,
            reserved,
            is_retry=is_retry(request),
            request_id=request.scope["request_id"],
        )
    batch = batch_object(await batch_row(runtime.store, caller.project, submitted.batch_id))
    if submitted.callback_secret is not None:
        batch["callback_secret"] = submitted.callback_secret
    headers = {"location": f"/v1/batches/{submitted.batch_id}"}
    return json_response(batch, 200, headers | REPLAYED if submitted.is_replay else headers)


async def get_batch(request: Request) -> Response:
    """One batch."""
    params.reject_unknown_params(request)
    row = await batch_row(runtime_of(request).store, caller_of(request).project, request.path_params["batch_id"])
    return json_response(batch_object(row))


async def list_batches(request: Request) -> Response:
    """A page of the project's batches, newest first."""
    params.reject_unknown_params(request, "limit", "after")
    limit = params.int_param(request, "limit", default=20, low=1, high=100) or 20
    runtime, project = runtime_of(request), caller_of(request).project
    after_id = request.query_params.get("after")
    data: list[dict[str, Any]] = []
    has_more = True
    while has_more and len(data) < limit:
        rows, has_more = await batch_page(
            runtime.store, project, limit=min(limit - len(data), PAGE_ROWS), after_id=after_id
        )
        data += [batch_object(row) for row in rows]
        after_id = rows[-1].id if rows else after_id
    return await runtime.work.run(project, partial(page_response, data, has_more=has_more))


async def cancel_batch(request: Request) -> Response:
    """Cancel the batch; what has run is kept."""
    params.reject_unknown_params(request)
    store, project, batch_id = runtime_of(request).store, caller_of(request).project, request.path_params["batch_id"]
    await cancel(store, project, batch_id)
    return json_response(batch_object(await batch_row(store, project, batch_id)))
