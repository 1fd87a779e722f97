"""The sync verb: embed the inputs of a call now, record their usage, and cancel with the client."""

from __future__ import annotations

import time
from typing import Any

from fastapi import Request

from api.http.auth import caller_of, runtime_of
from api.openai.disconnects import CancelledOnDisconnect
from api.openai.embedding_call import EmbeddingCall, EmbeddingOutcome
from api.openai.embedding_inputs import PreparedCall, prepare
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import INTERACTIVE, EmbedRun, embed
from engine.ledger import usage_rows
from engine.observability.route_metrics import CUT_OFF
from engine.runtime import Runtime
from models.base import random_id
from models.errors import EmbedmillError, InvalidInput, UpstreamProtocolError
from models.usage import UsageKind

MAX_CONCURRENT_CALLS = 8


async def run_embedding(request: Request, call: EmbeddingCall) -> EmbeddingOutcome:
    """Embed the inputs of the call. Raises the error of the first input without a vector.

    The task is cancelled, and `client_gone` is set in the scope, when the client hangs up.
    """
    runtime = runtime_of(request)
    prepared = await prepare(request, call)
    if runtime.drift_monitor.has_probes:
        await runtime.drift_monitor.refresh()
    if runtime.space_monitor.has_checks:
        await runtime.space_monitor.refresh(prepared.alias)
    collector = OutcomeCollector(len(prepared.inputs), prepared.width)
    run = _embed_run(request, prepared, collector)
    generation_id = random_id("gen")
    error = await _embed(request, call, prepared, run, collector, generation_id)
    if error is not None:
        raise error
    route = next(part.route for part in collector.outcomes if part.route is not None)
    return EmbeddingOutcome(
        call,
        prepared.alias,
        prepared.options,
        prepared.inputs,
        run.calls,
        collector,
        route,
        generation_id,
        prepared.truncated,
    )


def _embed_run(request: Request, prepared: PreparedCall, collector: OutcomeCollector) -> EmbedRun:
    runtime = runtime_of(request)
    return EmbedRun(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=prepared.alias,
        lane=INTERACTIVE,
        deadline=time.monotonic() + runtime.settings.sync_timeout_s,
        cooldown_wait_s=runtime.settings.sync_gate_wait_s,
        max_extra_calls=runtime.settings.sync_extra_calls,
        on_outcome=collector,
        tenant=caller_of(request).project,
        health_probes=runtime.health_probes,
    )


async def _embed(
    request: Request,
    call: EmbeddingCall,
    prepared: PreparedCall,
    run: EmbedRun,
    collector: OutcomeCollector,
    generation_id: str,
) -> EmbedmillError | None:
    """Make the calls and record their usage. Returns the error of the first input without a vector."""
    error_code: str | None = CUT_OFF
    try:
        with CancelledOnDisconnect(request):
            await embed(run, iter(prepared.batches), concurrency=MAX_CONCURRENT_CALLS)
        error = _first_error(call, prepared, collector)
        error_code = None if error is None else error.code
    except EmbedmillError as raised:
        error_code = raised.code
        raise
    finally:
        # The provider bills the outcomes that arrived before an error too.
        _record_usage(request, prepared, run, collector, error_code, generation_id)
    return error


def _record_usage(
    request: Request,
    prepared: PreparedCall,
    run: EmbedRun,
    collector: OutcomeCollector,
    error_code: str | None,
    generation_id: str,
) -> None:
    """Add the calls of the run to the ledger; outcomes of a request that ends with an error are wasted."""
    runtime: Runtime = runtime_of(request)
    caller = caller_of(request)
    payer: dict[str, Any] = {
        "project": caller.project,
        "key_id": caller.key_id,
        "lane": INTERACTIVE,
        "alias": prepared.alias.name,
        "user": prepared.options.user,
    }
    kind = UsageKind.DELIVERED if error_code is None else UsageKind.WASTED
    runtime.usage.add(
        usage_rows.delivered(collector.outcomes, kind=kind, code=error_code, row_id=generation_id, **payer)
        + usage_rows.of_calls(run.calls, **payer)
    )


def _first_error(call: EmbeddingCall, prepared: PreparedCall, collector: OutcomeCollector) -> EmbedmillError | None:
    """The error of the first input that has no vector."""
    refused = collector.first_error()
    if refused is None:
        return None
    index, error = refused
    param = f"{call.input_field}[{index}]" if prepared.is_list else call.input_field
    if error.retryable:  # the provider's fault, not the input's
        return UpstreamProtocolError(f"'{param}': {error.message}", param=param)
    return InvalidInput(f"Invalid '{param}': {error.message}.", param=param, code=error.code)
