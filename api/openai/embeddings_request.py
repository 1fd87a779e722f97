"""The body of POST /v1/embeddings, parsed, validated and packed into batches; slow parts run in the work threads."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request

from api.http import json_body
from api.http.auth import caller_of, runtime_of
from engine.embedding.body_errors import decode
from engine.embedding.request_body import EmbeddingRequest
from engine.planning import packing
from engine.planning.templates import added_bytes
from engine.routing.model_choice import choose_model
from engine.runtime import Runtime
from models.embedding import Alias, Batch, Input, Options
from models.errors import InputTooLong, InvalidInput

# A request with more inputs, or more text to tokenize, is prepared in the work threads, which tenants share fairly.
INLINE_INPUTS = 256
INLINE_TOKENIZE_BYTES = 16 * 1024  # some milliseconds
_REQUEST = msgspec.json.Decoder(EmbeddingRequest)


@dataclass(slots=True)
class PreparedRequest:
    """A sync request. `inputs`, `batches` and `truncated` are set once it has been validated and packed."""

    body: EmbeddingRequest
    alias: Alias
    options: Options
    width: int
    is_single: bool = False  # one bare string
    is_list: bool = False  # a list of inputs: errors name the index
    inputs: Sequence[Input] = ()
    batches: list[Batch] = field(default_factory=list)
    truncated: set[int] = field(default_factory=set)  # inputs whose end was cut off here


async def prepare(request: Request, raw: bytes) -> PreparedRequest:
    """Parse, validate and pack the body. Raises InvalidInput and InputTooLong, with the input's index in `param`."""
    runtime, project = runtime_of(request), caller_of(request).project
    body, span = await _parse(runtime, project, raw)
    if len(raw) > json_body.MAX_OPTIONS_BYTES:
        json_body.check_options(body.providerOptions, "providerOptions")
    options = Options(
        dimensions=body.dimensions,
        input_type=body.input_type,
        truncate=body.truncate or "none",
        user=body.user,
        provider_options=body.providerOptions or {},
    )
    alias, options = choose_model(runtime.aliases, runtime.alias(body.model), options)
    prepared = PreparedRequest(body, alias, options, packing.resolve_dimensions(alias, options.dimensions))
    steps = _validate_and_pack(runtime, prepared, raw, span)
    if span is None and len(raw) <= json_body.INLINE_BYTES and _is_quick(body.input, alias):
        for _ in steps:
            pass
    else:
        async for _ in runtime.work.drive(project, steps):
            pass
    return prepared


async def _parse(runtime: Runtime, project: str, raw: bytes) -> tuple[EmbeddingRequest, json_body.Span | None]:
    """The body; of a large one without its inputs, and where these lie."""
    if len(raw) <= json_body.INLINE_BYTES:
        return _decode(raw), None
    if json_body.is_cheap(raw):
        return await runtime.work.run(project, lambda: _decode(raw)), None
    return await runtime.work.run(project, lambda: json_body.split_input(_REQUEST, raw))


def _decode(raw: bytes) -> EmbeddingRequest:
    try:
        return decode(_REQUEST, raw)
    except InvalidInput as error:
        raise json_body.locate_invalid_input(raw, error) if error.code == "invalid_json" else error from None


def _is_quick(value: str | list[Any], alias: Alias) -> bool:
    """True when there is little to tokenize."""
    texts = value if isinstance(value, list) else [value]
    if len(texts) > INLINE_INPUTS:
        return False
    if packing.are_short_texts(texts, alias):
        return True
    max_tokens = alias.max_input_tokens
    long_texts = [text for text in texts if isinstance(text, str) and len(text) * 4 > max_tokens]
    return not long_texts or sum(packing.counting_bytes(text, alias) for text in long_texts) <= INLINE_TOKENIZE_BYTES


def _validate_and_pack(
    runtime: Runtime, prepared: PreparedRequest, raw: bytes, span: json_body.Span | None
) -> Iterator[None]:
    """Read, validate and pack the inputs: a step of some milliseconds between two yields."""
    alias, options, max_inputs = prepared.alias, prepared.options, runtime.settings.max_inputs_per_request
    value: str | list[Any] = prepared.body.input
    if span is not None:
        pieces = json_body.read_inputs(raw, span, max_inputs=max_inputs, max_tokens=alias.max_input_tokens)
        for inputs in pieces:
            value = inputs
            yield
    prepared.is_single = isinstance(value, str)
    prepared.is_list = _is_list(value)
    prepared.inputs = yield from _validate(value, alias, options, max_inputs, prepared.truncated)
    routes = alias.routes
    for batch in packing.pack(
        prepared.inputs,
        range(len(prepared.inputs)),
        packing.limits_of(routes),
        prepared.width,
        options,
        single=prepared.is_single,
        tokens_per_byte=runtime.router.tokens_per_byte(alias),
        exact=packing.has_exact_tokenizer(routes),
        added_bytes=added_bytes(routes, options),
    ):
        prepared.batches.append(batch)
        yield


def _validate(
    value: str | list[Any], alias: Alias, options: Options, max_inputs: int, truncated: set[int]
) -> Generator[None, None, Sequence[Input]]:
    """The inputs of the request, validated; an input that is cut short here is added to `truncated`.

    Yields after each INLINE_TOKENIZE_BYTES. Raises InvalidInput and InputTooLong, with the input's index in `param`.
    """
    inputs = _as_list(value)
    if len(inputs) > max_inputs:
        raise json_body.too_many_inputs(max_inputs, len(inputs))
    if packing.are_short_texts(inputs, alias):
        return inputs
    first_type = type(inputs[0])
    bytes_since_yield = 0
    for index, item in enumerate(inputs):
        if type(item) is not first_type or (first_type is list and any(type(token) is not int for token in item)):
            param = _param(value, index)
            raise InvalidInput(
                f"Invalid '{param}': texts and token arrays cannot be mixed. Send them in two requests.",
                param=param,
                code="invalid_type",
            )
        try:
            packing.validate_input(item, alias, options)
        except (InvalidInput, InputTooLong) as error:
            param = _param(value, index)
            raise type(error)(f"Invalid '{param}': {error.message}.", param=param, code=error.code) from None
        if options.truncate == "end":
            inputs[index] = packing.truncate_input(item, alias, options)
            if len(inputs[index]) < len(item):
                truncated.add(index)
        bytes_since_yield += len(item)
        if bytes_since_yield > INLINE_TOKENIZE_BYTES:
            bytes_since_yield = 0
            yield
    return inputs


def _as_list(value: str | list[Any]) -> list[Any]:
    """The inputs; a bare string and a flat array of token ids are one input. Raises InvalidInput for an empty list."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidInput(
            "Invalid 'input': the list is empty. Send at least one input.", param="input", code="empty_array"
        )
    return [value] if isinstance(value[0], int) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], int))


def _param(value: Any, index: int) -> str:
    return f"input[{index}]" if _is_list(value) else "input"
