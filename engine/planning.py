"""From inputs to batches: checked, cut where asked, packed within four limits at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from engine import tokens
from models.embedding import Alias, Batch, Input, InputError, Limits, Options, Route
from models.errors import InputTooLong, InvalidInput, UnsupportedParameter

# Room for the JSON around the texts, and for what escaping adds.
BYTES_AROUND_AN_INPUT = 8
MAX_TOKEN_ID = 2**31 - 1


def wanted_width(alias: Alias, dimensions: int | None) -> int:
    """The width of the vectors to return. Raises UnsupportedParameter when the model cannot give it."""
    if dimensions is None or dimensions == alias.width:
        return alias.width
    if dimensions not in alias.allowed_dimensions:
        allowed = alias.allowed_dimensions
        words = (
            f"{allowed.start} to {allowed.stop - 1}"
            if isinstance(allowed, range)
            else ", ".join(str(width) for width in sorted(allowed))
        )
        raise UnsupportedParameter(
            f"Invalid 'dimensions': {dimensions} is not supported by the model {alias.name}. Supported: {words}.",
            param="dimensions",
            code="invalid_value",
        )
    return dimensions


def check(item: Input, alias: Alias, options: Options, *, accepts_tokens: bool) -> None:
    """Raises InvalidInput or InputTooLong, without a `param`: the caller knows the place."""
    if isinstance(item, str):
        if not item:
            raise InvalidInput("input cannot be an empty string", code="empty_input")
    else:
        if not item:
            raise InvalidInput("a token array cannot be empty", code="empty_input")
        if not accepts_tokens:
            raise InvalidInput(
                f"the model {alias.name} takes text only: send strings instead of token arrays",
                code="tokens_not_supported",
            )
        if min(item) < 0 or max(item) >= 2**31:
            raise InvalidInput(f"token ids must be from 0 to {MAX_TOKEN_ID}", code="invalid_input")
    if options.truncate == "none" and not tokens.fits(item, alias.max_input_tokens):
        raise InputTooLong(f"maximum input length is {alias.max_input_tokens} tokens")


def shortened(item: Input, alias: Alias, options: Options) -> Input:
    """The input, its end cut off where it is over-long and the caller allowed that."""
    return tokens.cut_to(item, alias.max_input_tokens) if options.truncate == "end" else item


def limits_of(routes: Sequence[Route], *, inputs_per_call: int | None = None) -> Limits:
    """The tightest of the routes' limits, so that a batch packed for one of them fits all."""
    each = [route.limits for route in routes]
    return Limits(
        inputs_per_call=min([limit.inputs_per_call for limit in each] + ([inputs_per_call] if inputs_per_call else [])),
        tokens_per_input=min(limit.tokens_per_input for limit in each),
        tokens_per_call=min(limit.tokens_per_call for limit in each),
        bytes_per_call=min(limit.bytes_per_call for limit in each),
    )


def pack(
    inputs: Sequence[Input],
    indexes: Sequence[int],
    limits: Limits,
    width: int,
    options: Options,
    *,
    single: bool = False,
) -> Iterator[Batch]:
    """Cut a run of inputs into batches, in order, each within all four limits.

    An input that breaks a limit by itself travels alone: the upstream, not an estimate, says no.
    """
    start = 0
    batch_tokens = batch_bytes = 0
    for position, item in enumerate(inputs):
        weight = tokens.estimate(item)
        size = (weight * 3 if isinstance(item, str) else len(item) * 7) + BYTES_AROUND_AN_INPUT
        full = (
            position - start >= limits.inputs_per_call
            or batch_tokens + weight > limits.tokens_per_call
            or batch_bytes + size > limits.bytes_per_call
        )
        if full and position > start:
            yield Batch(inputs[start:position], indexes[start:position], batch_tokens, width, options)
            start, batch_tokens, batch_bytes = position, 0, 0
        batch_tokens += weight
        batch_bytes += size
    if start < len(inputs):
        yield Batch(inputs[start:], indexes[start:], batch_tokens, width, options, single=single)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The batch as two, in order."""
    whole = replace(batch, single=False)
    middle = len(batch.inputs) // 2
    return part(whole, 0, middle), part(whole, middle, len(batch.inputs))


def part(batch: Batch, start: int, stop: int) -> Batch:
    return chosen(batch, range(start, stop))


def chosen(batch: Batch, positions: Sequence[int]) -> Batch:
    """The inputs of the batch at these positions, in this order."""
    inputs = [batch.inputs[i] for i in positions]
    indexes = [batch.indexes[i] for i in positions]
    single = batch.single and len(inputs) == len(batch.inputs)
    return replace(batch, inputs=inputs, indexes=indexes, tokens=sum(map(tokens.estimate, inputs)), single=single)


def too_long(alias_limit: int) -> InputError:
    return InputError("input_too_long", f"maximum input length is {alias_limit} tokens")
