"""POST /v1/embeddings: parse, embed, render straight from float32 rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
import orjson
from fastapi import Request
from starlette.responses import Response

from api import bodies
from api.errors import CLIENT_GONE
from api.guard import caller_of, runtime_of
from api.schemas import EmbeddingRequest, decode
from engine import planning, usage, vectors
from engine.embedding import INTERACTIVE, Flight, embed
from engine.gathered import Gathered
from models.base import trace_id, usd_text
from models.embedding import Alias, Call, Input, Matrix, Options, Route
from models.errors import InputTooLong, InvalidInput, UnsupportedMediaType, UpstreamProtocolError

SIDE_BY_SIDE = 8
# A client that hangs up within this time is not noticed before the answer: watching costs a task a request.
PATIENCE_S = 0.05
_REQUEST = msgspec.json.Decoder(EmbeddingRequest)


async def create_embeddings(request: Request) -> Response:
    runtime = runtime_of(request)
    if bodies.media_type(request) != "application/json":
        raise UnsupportedMediaType("Send the body as application/json.", param="content-type")
    asked = decode(_REQUEST, await bodies.read(request, runtime.settings.max_body_bytes))
    alias = runtime.alias(asked.model)
    width = planning.wanted_width(alias, asked.dimensions)
    options = Options(
        dimensions=asked.dimensions,
        input_type=asked.input_type,
        truncate=asked.truncate or "none",
        user=asked.user,
        provider_options=asked.providerOptions or {},
    )
    alias = runtime.narrowed(alias, options)
    inputs = _inputs(asked.input, alias, options, runtime.settings.max_inputs_per_request)
    await runtime.canaries.look()
    gathered = Gathered(len(inputs), width)
    flight = Flight(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=alias,
        lane=INTERACTIVE,
        deadline=time.monotonic() + runtime.settings.sync_timeout_s,
        landed=gathered,
    )
    limits = planning.limits_of(alias.routes)
    batches = planning.pack(
        inputs,
        range(len(inputs)),
        limits,
        width,
        options,
        single=isinstance(asked.input, str),
        per_byte=runtime.router.per_byte(alias),
        exact=planning.countable(alias.routes),
    )
    try:
        with cancelled_on_disconnect(request):
            await embed(flight, batches, concurrency=SIDE_BY_SIDE)
    except asyncio.CancelledError:
        if request.scope.get("client_gone"):
            return Response(status_code=CLIENT_GONE)
        raise
    finally:
        # What landed before an error was billed by the provider all the same: it stands in the ledger.
        caller = caller_of(request)
        runtime.usage.add(
            usage.rows(
                gathered.parts,
                project=caller.project,
                key_id=caller.key_id,
                lane=INTERACTIVE,
                alias=alias.name,
                user=asked.user,
            )
        )
    refused = gathered.refused()
    if refused is not None:
        index, error = refused
        if error.retryable:  # the provider's fault, not the input's
            raise UpstreamProtocolError(f"'{_place(asked.input, index)}': {error.message}")
        raise InvalidInput(
            f"Invalid '{_place(asked.input, index)}': {error.message}.",
            param=_place(asked.input, index),
            code=error.code,
        )
    return _render(alias, flight.calls, gathered, base64=asked.encoding_format == "base64")


def _inputs(given: str | list[Any], alias: Alias, options: Options, most: int) -> Sequence[Input]:
    """The request's inputs, checked. Raises InvalidInput, InputTooLong with the place in `param`."""
    inputs: list[Input]
    if isinstance(given, str):
        inputs = [given]
    elif not given:
        raise InvalidInput("Invalid 'input': the list is empty.", param="input", code="empty_array")
    elif isinstance(given[0], int):
        inputs = [given]  # a flat array of numbers is one input, given as tokens
    else:
        inputs = given
    if len(inputs) > most:
        raise InvalidInput(
            f"Invalid 'input': array too long. Expected an array with maximum length {most}, but got {len(inputs)}.",
            param="input",
            code="array_above_max_length",
        )
    one_kind = type(inputs[0])
    accepts_tokens = any(route.accepts_tokens for route in alias.routes)
    for index, item in enumerate(inputs):
        place = _place(given, index)
        mixed = type(item) is not one_kind or (one_kind is list and any(type(token) is not int for token in item))
        if mixed:
            raise InvalidInput(
                f"Invalid '{place}': texts and token arrays cannot be mixed.", param=place, code="invalid_type"
            )
        try:
            planning.check(item, alias, options, accepts_tokens=accepts_tokens)
        except (InvalidInput, InputTooLong) as error:
            raise type(error)(f"Invalid '{place}': {error.message}.", param=place, code=error.code) from None
    if options.truncate == "end":
        return [planning.shortened(item, alias, options) for item in inputs]
    return inputs


def _place(given: Any, index: int) -> str:
    is_list = isinstance(given, list) and not (given and isinstance(given[0], int))
    return f"input[{index}]" if is_list else "input"


@contextmanager
def cancelled_on_disconnect(request: Request) -> Iterator[None]:
    """Cancel the current task when the client hangs up. Upstream work is then cancelled with it."""
    task = asyncio.current_task()
    watcher: list[asyncio.Task[None]] = []

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        request.scope["client_gone"] = True
        if task is not None:
            task.cancel()

    def start() -> None:
        watcher.append(asyncio.create_task(watch()))

    timer = asyncio.get_running_loop().call_later(PATIENCE_S, start)
    try:
        yield
    finally:
        timer.cancel()
        for running in watcher:
            running.cancel()


def _render(alias: Alias, calls: Sequence[Call], gathered: Gathered, *, base64: bool) -> Response:
    parts = gathered.parts
    tokens = sum(part.tokens for part in parts)
    route = next(part.route for part in parts if part.route is not None)
    metadata = _metadata(alias, calls, route, sum((part.cost_usd for part in parts), Decimal(0)))
    metadata["usageEstimated"] = any(part.tokens_estimated for part in parts)
    tail = orjson.dumps(
        {
            "model": alias.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "providerMetadata": {"gateway": metadata},
        }
    )
    return Response(
        b"".join(_pieces(gathered.rows(), tail, base64=base64)),
        media_type="application/json",
        headers={"x-embedmill-provider": route.provider, "x-embedmill-space": alias.space},
    )


def _pieces(blocks: Sequence[Matrix], tail: bytes, *, base64: bool) -> list[bytes]:
    """The answer in pieces: a megabyte of vectors is copied once, when they are joined."""
    written = [vectors.base64_row(row) if base64 else vectors.json_row(row) for block in blocks for row in block]
    openings = _openings(len(written), base64=base64)
    pieces = [b""] * (2 * len(written))
    pieces[0::2] = openings
    pieces[1::2] = written
    pieces += (b'"}],' if base64 else b"}],", tail[1:])
    return pieces


@lru_cache(maxsize=32)
def _openings(count: int, *, base64: bool) -> tuple[bytes, ...]:
    """What stands before each vector, the end of the one before it included."""
    quote = b'"' if base64 else b""
    first = b'{"object":"list","data":['
    between = quote + b"},"
    return tuple(
        (between if index else first) + b'{"object":"embedding","index":%d,"embedding":' % index + quote
        for index in range(count)
    )


def _metadata(alias: Alias, calls: Sequence[Call], final: Route, cost: Decimal) -> dict[str, Any]:
    first = alias.routes[0]
    return {
        "routing": {
            "originalModelId": alias.name,
            "resolvedProvider": first.provider,
            "resolvedProviderApiModelId": first.upstream_model,
            "finalProvider": final.provider,
            "fallbacksAvailable": [route.provider for route in alias.routes if route is not final],
            "attempts": [
                {
                    "provider": call.provider,
                    "providerApiModelId": call.upstream_model,
                    "success": call.success,
                    "statusCode": call.status,
                    "startTime": call.started_at,
                    "endTime": call.ended_at,
                    "error": call.error,
                }
                for call in calls
            ],
        },
        "space": alias.space,
        "cost": usd_text(cost),
        "generationId": trace_id("gen"),
        "usageEstimated": False,
        "cachedInputs": 0,
        "warnings": [],
    }
