"""POST /v1/embeddings: parse, embed, render straight from float32 rows."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http import media_types, request_body
from api.http.auth import caller_of, runtime_of
from api.http.errors import CLIENT_GONE
from api.openai.disconnects import CancelledOnDisconnect
from api.openai.embeddings_request import PreparedRequest, prepare
from api.openai.embeddings_response import encode_rows, render
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import INTERACTIVE, EmbedRun, embed
from engine.ledger import usage_rows
from engine.observability.route_metrics import CUT_OFF
from engine.runtime import Runtime
from models.errors import EmbedmillError, InvalidInput, UpstreamProtocolError
from models.usage import UsageKind

MAX_CONCURRENT_CALLS = 8


async def create_embeddings(request: Request) -> Response:
    """Embed the inputs of the body now; an input without a vector fails the request with its error."""
    runtime = runtime_of(request)
    if (kind := media_types.media_type(request)) != media_types.JSON:
        raise media_types.unsupported(kind, [media_types.JSON])
    with request_body.body_lease(request) as lease:
        raw = await request_body.read_body_under_lease(request, runtime.settings.max_body_bytes, lease)
        prepared = await prepare(request, raw)
        if runtime.drift_monitor.has_probes:
            await runtime.drift_monitor.refresh()
        if runtime.space_monitor.has_checks:
            await runtime.space_monitor.refresh(prepared.alias)
        outcomes = OutcomeCollector(len(prepared.inputs), prepared.width)
        run = _embed_run(request, prepared, outcomes)
        try:
            error = await _embed(request, prepared, run, outcomes)
        except asyncio.CancelledError:
            if request.scope.get("client_gone"):
                return Response(status_code=CLIENT_GONE)
            raise
        if error is not None:
            raise error
        base64 = prepared.body.encoding_format == "base64"
        rows = await encode_rows(runtime.work, caller_of(request).project, outcomes, base64=base64)
        return render(prepared, run.calls, outcomes, rows, base64=base64)


def _embed_run(request: Request, prepared: PreparedRequest, outcomes: OutcomeCollector) -> EmbedRun:
    runtime = runtime_of(request)
    return EmbedRun(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=prepared.alias,
        lane=INTERACTIVE,
        deadline=time.monotonic() + runtime.settings.sync_timeout_s,
        cooldown_wait_s=runtime.settings.sync_gate_wait_s,
        max_extra_calls=runtime.settings.sync_extra_calls,
        on_outcome=outcomes,
        tenant=caller_of(request).project,
        health_probes=runtime.health_probes,
    )


async def _embed(
    request: Request, prepared: PreparedRequest, run: EmbedRun, outcomes: OutcomeCollector
) -> EmbedmillError | None:
    """Make the calls and record their usage. Returns the error of the first input without a vector."""
    error_code: str | None = CUT_OFF
    try:
        with CancelledOnDisconnect(request):
            await embed(run, iter(prepared.batches), concurrency=MAX_CONCURRENT_CALLS)
        error = _first_error(prepared, outcomes)
        error_code = None if error is None else error.code
    except EmbedmillError as raised:
        error_code = raised.code
        raise
    finally:
        # The provider bills the outcomes that arrived before an error too.
        _record_usage(request, prepared, run, outcomes, error_code)
    return error


def _record_usage(
    request: Request, prepared: PreparedRequest, run: EmbedRun, outcomes: OutcomeCollector, error_code: str | None
) -> None:
    """Add the calls of the run to the ledger; outcomes of a request that ends with an error are wasted."""
    runtime: Runtime = runtime_of(request)
    caller = caller_of(request)
    payer: dict[str, Any] = {
        "project": caller.project,
        "key_id": caller.key_id,
        "lane": INTERACTIVE,
        "alias": prepared.alias.name,
        "user": prepared.body.user,
    }
    kind = UsageKind.DELIVERED if error_code is None else UsageKind.WASTED
    runtime.usage.add(
        usage_rows.delivered(outcomes.outcomes, kind=kind, code=error_code, **payer)
        + usage_rows.of_calls(run.calls, **payer)
    )


def _first_error(prepared: PreparedRequest, outcomes: OutcomeCollector) -> EmbedmillError | None:
    """The error of the first input that has no vector."""
    refused = outcomes.first_error()
    if refused is None:
        return None
    index, error = refused
    param = f"input[{index}]" if prepared.is_list else "input"
    if error.retryable:  # the provider's fault, not the input's
        return UpstreamProtocolError(f"'{param}': {error.message}", param=param)
    return InvalidInput(f"Invalid '{param}': {error.message}.", param=param, code=error.code)
