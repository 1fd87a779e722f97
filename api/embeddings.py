"""POST /v1/embeddings: parse, embed, render straight from float32 rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from api import bodies, large_bodies, media_types
from api.embedding_reply import render, write_rows
from api.errors import CLIENT_GONE
from api.guard import caller_of, runtime_of
from api.schemas import EmbeddingRequest, decode
from engine.embedding.collector import OutcomeCollector
from engine.embedding.embed import INTERACTIVE, EmbedRun, embed
from engine.ledger import usage_rows
from engine.observability.route_metrics import CUT_OFF
from engine.planning import packing
from engine.runtime import Runtime
from models.embedding import Alias, Batch, Input, Options
from models.errors import EmbedmillError, InputTooLong, InvalidInput, UpstreamProtocolError
from models.usage import UsageKind
from providers.caller_options import checked_options

SIDE_BY_SIDE = 8
# So much text is counted where it is: some milliseconds.
QUICK_BYTES = 16 * 1024
# A larger request is read in the work threads, and a larger answer written in steps, where each tenant has its turn.
INLINE_INPUTS = 256
INLINE_NUMBERS = 256 * 1024  # of an answer in JSON: some 6 ms
INLINE_BASE64_NUMBERS = 512 * 1024
# A client that hangs up within this time is not noticed before the answer: watching costs a task a request.
PATIENCE_S = 0.05
_REQUEST = msgspec.json.Decoder(EmbeddingRequest)


async def create_embeddings(request: Request) -> Response:
    runtime = runtime_of(request)
    if (kind := media_types.media_type(request)) != media_types.JSON:
        raise media_types.unsupported(kind, [media_types.JSON])
    with bodies.lease_of(request) as lease:
        body = await bodies.read_under_lease(request, runtime.settings.max_body_bytes, lease)
        return await _embed(request, runtime, await _parsed(request, runtime, body))


@dataclass(slots=True)
class _Parsed:
    """A sync request, parsed; and from `prepared` on checked and packed."""

    asked: EmbeddingRequest
    alias: Alias
    options: Options
    width: int
    is_single: bool = False  # one bare string
    is_list: bool = False  # a list of inputs: errors name the place in it
    inputs: Sequence[Input] = ()
    batches: list[Batch] = field(default_factory=list)
    truncated: set[int] = field(default_factory=set)  # inputs whose end was cut off here


async def _parsed(request: Request, runtime: Runtime, body: bytes) -> _Parsed:
    """The request with its inputs in batches. What takes long is done in the work threads.

    Raises InvalidInput and InputTooLong, with the place in `param`.
    """
    span = None
    project = caller_of(request).project
    if len(body) <= large_bodies.INLINE_BYTES:
        asked = _decoded(body)
    elif large_bodies.is_cheap(body):
        asked = await runtime.work.run(project, lambda: _decoded(body))
    else:
        asked, span = await runtime.work.run(project, lambda: large_bodies.split(_REQUEST, body))
    if len(body) > large_bodies.MAX_OPTIONS_BYTES:
        large_bodies.check_options(asked.providerOptions, "providerOptions")
    alias = runtime.alias(asked.model)
    options = Options(
        dimensions=asked.dimensions,
        input_type=asked.input_type,
        truncate=asked.truncate or "none",
        user=asked.user,
        provider_options=asked.providerOptions or {},
    )
    alias = runtime.apply_gateway_options(alias, options)
    options = checked_options(options, alias)
    parsed = _Parsed(asked, alias, options, packing.resolve_dimensions(alias, options.dimensions))
    steps = _prepared(runtime, parsed, body, span)
    if span is None and len(body) <= large_bodies.INLINE_BYTES and _is_quick(asked.input, parsed.alias):
        for _ in steps:
            pass
    else:
        async for _ in runtime.work.drive(project, steps):
            pass
    return parsed


def _decoded(body: bytes) -> EmbeddingRequest:
    try:
        return decode(_REQUEST, body)
    except InvalidInput as error:
        raise large_bodies.name_the_guilty(body, error) if error.code == "invalid_json" else error from None


def _is_quick(given: str | list[Any], alias: Alias) -> bool:
    """True when no tokenizer has much to do."""
    texts = given if isinstance(given, list) else [given]
    if len(texts) > INLINE_INPUTS:
        return False
    if packing.are_short_texts(texts, alias):
        return True
    most = alias.max_input_tokens
    long = [text for text in texts if isinstance(text, str) and len(text) * 4 > most]
    return not long or sum(packing.counting_bytes(text, alias) for text in long) <= QUICK_BYTES


def _prepared(runtime: Runtime, parsed: _Parsed, body: bytes, span: large_bodies.Span | None) -> Iterator[None]:
    """Read, check and pack the inputs: a step of some milliseconds between two yields."""
    alias, options, most = parsed.alias, parsed.options, runtime.settings.max_inputs_per_request
    given: str | list[Any] = parsed.asked.input
    if span is not None:
        pieces = large_bodies.read_inputs(body, span, max_inputs=most, max_tokens=alias.max_input_tokens)
        for inputs in pieces:
            given = inputs
            yield
    parsed.is_single = isinstance(given, str)
    parsed.is_list = _is_list(given)
    checked = _checked(given, alias, options, most, parsed.truncated)
    while True:
        try:
            next(checked)
        except StopIteration as end:
            parsed.inputs = end.value
            break
        yield
    routes = alias.routes
    for batch in packing.pack(
        parsed.inputs,
        range(len(parsed.inputs)),
        packing.limits_of(routes),
        parsed.width,
        options,
        single=parsed.is_single,
        tokens_per_byte=runtime.router.tokens_per_byte(alias),
        exact=packing.has_exact_tokenizer(routes),
    ):
        parsed.batches.append(batch)
        yield


async def _embed(request: Request, runtime: Runtime, parsed: _Parsed) -> Response:
    asked, alias, inputs, width = parsed.asked, parsed.alias, parsed.inputs, parsed.width
    await runtime.drift_monitor.refresh()
    gathered = OutcomeCollector(len(inputs), width)
    flight = EmbedRun(
        upstream=runtime.upstream,
        router=runtime.router,
        alias=alias,
        lane=INTERACTIVE,
        deadline=time.monotonic() + runtime.settings.sync_timeout_s,
        cooldown_wait_s=runtime.settings.sync_gate_wait_s,
        max_extra_calls=runtime.settings.sync_extra_calls,
        on_outcome=gathered,
        tenant=caller_of(request).project,
    )
    failure: str | None = CUT_OFF
    try:
        with cancelled_on_disconnect(request):
            await embed(flight, iter(parsed.batches), concurrency=SIDE_BY_SIDE)
        failure = error.code if (error := _refused(parsed, gathered)) is not None else None
    except EmbedmillError as raised:
        failure = raised.code
        raise
    except asyncio.CancelledError:
        if request.scope.get("client_gone"):
            return Response(status_code=CLIENT_GONE)
        raise
    finally:
        # What landed before an error was billed by the provider all the same: it stands in the ledger.
        caller = caller_of(request)
        about: dict[str, Any] = {
            "project": caller.project,
            "key_id": caller.key_id,
            "lane": INTERACTIVE,
            "alias": alias.name,
            "user": asked.user,
        }
        kind = UsageKind.DELIVERED if failure is None else UsageKind.WASTED
        runtime.usage.add(
            usage_rows.delivered(gathered.outcomes, kind=kind, code=failure, **about)
            + usage_rows.of_calls(flight.calls, **about)
        )
    if error is not None:
        raise error
    base64 = asked.encoding_format == "base64"
    numbers = len(inputs) * width
    rows = [row for block in gathered.vectors_in_order() for row in block]
    if len(inputs) <= INLINE_INPUTS and numbers <= (INLINE_BASE64_NUMBERS if base64 else INLINE_NUMBERS):
        written = write_rows(rows, base64=base64)
    else:
        # On the loop, in steps: a thread would hold the interpreter as long, and cost its switches too.
        step = max(1, INLINE_NUMBERS // width)
        written = []
        async with runtime.work.project_lock(caller_of(request).project):
            for low in range(0, len(rows), step):
                written += write_rows(rows[low : low + step], base64=base64)
                await asyncio.sleep(0)
    return render(alias, parsed.options, flight.calls, gathered, written, parsed.truncated, base64=base64)


def _refused(parsed: _Parsed, gathered: OutcomeCollector) -> EmbedmillError | None:
    """The error of the first input that has no vector."""
    refused = gathered.first_error()
    if refused is None:
        return None
    index, error = refused
    place = f"input[{index}]" if parsed.is_list else "input"
    if error.retryable:  # the provider's fault, not the input's
        return UpstreamProtocolError(f"'{place}': {error.message}", param=place)
    return InvalidInput(f"Invalid '{place}': {error.message}.", param=place, code=error.code)


def _checked(
    given: str | list[Any], alias: Alias, options: Options, most: int, truncated: set[int]
) -> Generator[None, None, Sequence[Input]]:
    """The request's inputs, checked, and noted in `truncated` where cut; yields now and then.

    Raises InvalidInput, InputTooLong that name the place.
    """
    inputs: list[Input]
    if isinstance(given, str):
        inputs = [given]
    elif not given:
        raise InvalidInput(
            "Invalid 'input': the list is empty. Send at least one input.", param="input", code="empty_array"
        )
    elif isinstance(given[0], int):
        inputs = [given]  # a flat array of numbers is one input, given as tokens
    else:
        inputs = given
    if len(inputs) > most:
        raise large_bodies.too_many(most, len(inputs))
    if packing.are_short_texts(inputs, alias):
        return inputs
    one_kind = type(inputs[0])
    accepts_tokens = any(route.accepts_tokens for route in alias.routes)
    counted = 0
    for index, item in enumerate(inputs):
        mixed = type(item) is not one_kind or (one_kind is list and any(type(token) is not int for token in item))
        if mixed:
            place = _place(given, index)
            raise InvalidInput(
                f"Invalid '{place}': texts and token arrays cannot be mixed. Send them in two requests.",
                param=place,
                code="invalid_type",
            )
        try:
            packing.validate_input(item, alias, options, accepts_tokens=accepts_tokens)
        except (InvalidInput, InputTooLong) as error:
            place = _place(given, index)
            raise type(error)(f"Invalid '{place}': {error.message}.", param=place, code=error.code) from None
        if options.truncate == "end":
            inputs[index] = packing.truncate_input(item, alias, options)
            if len(inputs[index]) < len(item):
                truncated.add(index)
        counted += len(item)
        if counted > QUICK_BYTES:
            counted = 0
            yield
    return inputs


def _is_list(given: Any) -> bool:
    return isinstance(given, list) and not (given and isinstance(given[0], int))


def _place(given: Any, index: int) -> str:
    return f"input[{index}]" if _is_list(given) else "input"


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
