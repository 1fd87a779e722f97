"""The inputs of a sync call, validated and packed into batches; slow parts run in the work threads."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from api.http import json_body
from api.http.auth import caller_of, runtime_of
from api.openai.embedding_call import EmbeddingCall
from engine.planning import packing
from engine.planning.templates import added_bytes
from engine.routing.model_choice import choose_model
from engine.runtime import Runtime
from models.embedding import Alias, Batch, Input, Options
from models.errors import InputTooLong, InvalidInput

# A request with more inputs, or more text to tokenize, is prepared in the work threads, which tenants share fairly.
INLINE_INPUTS = 256
INLINE_TOKENIZE_BYTES = 16 * 1024  # some milliseconds


@dataclass(slots=True)
class PreparedCall:
    """A sync call ready to be sent. `inputs`, `batches` and `truncated` are set once it has been validated."""

    alias: Alias
    options: Options
    width: int
    is_list: bool = False  # a list of inputs: errors name the index
    inputs: Sequence[Input] = ()
    batches: list[Batch] = field(default_factory=list)
    truncated: set[int] = field(default_factory=set)  # inputs whose end was cut off here


async def prepare(request: Request, call: EmbeddingCall) -> PreparedCall:
    """Validate and pack the inputs. Raises InvalidInput and InputTooLong, with the input's index in `param`."""
    runtime = runtime_of(request)
    alias, options = choose_model(runtime.aliases, runtime.alias(call.model), call.options)
    prepared = PreparedCall(alias, options, packing.resolve_dimensions(alias, options.dimensions))
    steps = _validate_and_pack(runtime, prepared, call)
    if call.unread is None and call.body_bytes <= json_body.INLINE_BYTES and _is_quick(call.input, alias):
        for _ in steps:
            pass
    else:
        async for _ in runtime.work.drive(caller_of(request).project, steps):
            pass
    return prepared


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


def _validate_and_pack(runtime: Runtime, prepared: PreparedCall, call: EmbeddingCall) -> Iterator[None]:
    """Read, validate and pack the inputs: a step of some milliseconds between two yields."""
    alias, options, max_inputs = prepared.alias, prepared.options, runtime.settings.max_inputs_per_request
    value: str | list[Any] = call.input
    if call.unread is not None:
        body, span = call.unread
        pieces = json_body.read_inputs(body, span, max_inputs=max_inputs, max_tokens=alias.max_input_tokens)
        for inputs in pieces:
            value = inputs
            yield
    prepared.is_list = _is_list(value)
    prepared.inputs = yield from _validate(value, call.input_field, alias, options, max_inputs, prepared.truncated)
    routes = alias.routes
    for batch in packing.pack(
        prepared.inputs,
        range(len(prepared.inputs)),
        packing.limits_of(routes),
        prepared.width,
        options,
        single=isinstance(value, str),
        tokens_per_byte=runtime.router.tokens_per_byte(alias),
        exact=packing.has_exact_tokenizer(routes),
        added_bytes=added_bytes(routes, options),
    ):
        prepared.batches.append(batch)
        yield


def _validate(
    value: str | list[Any], name: str, alias: Alias, options: Options, max_inputs: int, truncated: set[int]
) -> Generator[None, None, Sequence[Input]]:
    """The inputs of the request, validated; an input that is cut short here is added to `truncated`.

    Yields after each INLINE_TOKENIZE_BYTES. Raises InvalidInput and InputTooLong, with the input's index in `param`.
    """
    inputs = _as_list(value, name)
    if len(inputs) > max_inputs:
        raise json_body.too_many_inputs(max_inputs, len(inputs), name=name)
    if packing.are_short_texts(inputs, alias):
        return inputs
    first_type = type(inputs[0])
    bytes_since_yield = 0
    for index, item in enumerate(inputs):
        if type(item) is not first_type or (first_type is list and any(type(token) is not int for token in item)):
            param = _param(value, name, index)
            raise InvalidInput(
                f"Invalid '{param}': texts and token arrays cannot be mixed. Send them in two requests.",
                param=param,
                code="invalid_type",
            )
        try:
            packing.validate_input(item, alias, options)
        except (InvalidInput, InputTooLong) as error:
            param = _param(value, name, index)
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


def _as_list(value: str | list[Any], name: str) -> list[Any]:
    """The inputs; a bare string and a flat array of token ids are one input. Raises InvalidInput for an empty list."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidInput(
            f"Invalid '{name}': the list is empty. Send at least one input.", param=name, code="empty_array"
        )
    return [value] if isinstance(value[0], int) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], int))


def _param(value: Any, name: str, index: int) -> str:
    return f"{name}[{index}]" if _is_list(value) else name
