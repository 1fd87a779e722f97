"""Turns inputs into batches: validates, truncates on request, and packs them within four limits at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from engine.planning import token_estimator, tokens
from engine.planning.templates import takes_token_arrays
from models.embedding import Alias, Batch, Input, Limits, Options, Route
from models.errors import InputTooLong, InvalidInput, UnsupportedParameter

# Room for the JSON around the texts: commas and brackets, and the other fields of a call.
BYTES_AROUND_AN_INPUT = 2
BYTES_AROUND_A_CALL = 512
MAX_TOKEN_ID = 2**31 - 1
# cl100k's longest token is 128 spaces, and no other tokenizer of the catalog has longer ones (November 2026).
MAX_BYTES_PER_TOKEN = 128
WHAT_TO_DO_IF_TOO_LONG = "send it in parts, or with truncate=end, which cuts its end off"


def resolve_dimensions(alias: Alias, dimensions: int | None) -> int:
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


def validate_input(item: Input, alias: Alias, options: Options) -> None:
    """Raise InvalidInput or InputTooLong, without a `param`: the caller knows the position."""
    if isinstance(item, str):
        if not item:
            raise InvalidInput("input cannot be an empty string: leave it out", code="empty_input")
    else:
        if not item:
            raise InvalidInput("a token array cannot be empty: leave it out", code="empty_input")
        _validate_tokens(item, alias, options)
    limit = alias.max_input_tokens * (max_windows(alias) if options.truncate == "mean" else 1)
    if options.truncate != "end" and (
        (isinstance(item, str) and len(item) > limit * MAX_BYTES_PER_TOKEN) or not tokens.is_within(item, limit)
    ):
        raise InputTooLong(f"maximum input length is {limit} tokens: {WHAT_TO_DO_IF_TOO_LONG}")


def _validate_tokens(item: list[int], alias: Alias, options: Options) -> None:
    if not any(takes_token_arrays(route, options.input_type) for route in alias.routes):
        raise InvalidInput(
            f"the model {alias.name} takes text only: send strings instead of token arrays "
            "(LangChain: check_embedding_ctx_length=False)",
            code="tokens_not_supported",
        )
    if min(item) < 0 or max(item) > MAX_TOKEN_ID:
        raise InvalidInput(f"token ids must be from 0 to {MAX_TOKEN_ID}", code="invalid_input")
    if not any(route.accepts_tokens for route in alias.routes):
        try:
            is_empty = not tokens.decode(item, _tokenizer_of(alias))
        except ValueError as error:
            raise InvalidInput(f"the tokens cannot be decoded: {error}", code="invalid_input") from None
        if is_empty:
            raise InvalidInput("a token array cannot decode to an empty text: leave it out", code="empty_input")


def _tokenizer_of(alias: Alias) -> str:
    """Of token arrays that become text: that of its first route that decodes them."""
    return next((route.token_arrays for route in alias.routes if route.token_arrays is not None), tokens.CL100K)


def max_windows(alias: Alias) -> int:
    """The most windows of one input that a call of each of the alias's routes takes, with a tenth as a margin."""
    limits = limits_of(alias.routes)
    return max(1, min(limits.inputs_per_call, limits.tokens_per_call // max(1, alias.max_input_tokens)) * 9 // 10)


def are_short_texts(inputs: Sequence[Input], alias: Alias) -> bool:
    """True when types and lengths alone show that every input is a text, not empty and not too long."""
    return set(map(type, inputs)) == {str} and all(inputs) and max(map(len, inputs)) * 4 <= alias.max_input_tokens


def max_text_bytes(alias: Alias) -> int:
    """A text of more bytes, or of more characters, is surely too long: its tokens need not be counted."""
    return alias.max_input_tokens * MAX_BYTES_PER_TOKEN


def weight(item: Input) -> int:
    """Approximate bytes of memory of an input."""
    return len(item) if isinstance(item, str) else len(item) * 8


def counting_bytes(item: Input, alias: Alias) -> int:
    """Bytes that a tokenizer must read to decide whether the input is too long; 0: no tokenizer is needed."""
    if isinstance(item, list) or len(item) * 4 <= alias.max_input_tokens or len(item) > max_text_bytes(alias):
        return 0
    return len(item)


def truncate_input(item: Input, alias: Alias, options: Options) -> Input:
    """The input, its end cut off where it is too long and the caller allowed truncation."""
    return tokens.truncate_to(item, alias.max_input_tokens) if options.truncate == "end" else item


def limits_of(routes: Sequence[Route], *, inputs_per_call: int | None = None) -> Limits:
    """The lowest of the routes' limits, so that a batch packed for one of them fits all."""
    limits = routes[0].limits if len(routes) == 1 else min_limits([route.limits for route in routes])
    if inputs_per_call is None or inputs_per_call >= limits.inputs_per_call:
        return limits
    return replace(limits, inputs_per_call=inputs_per_call)


def min_limits(each: Sequence[Limits]) -> Limits:
    """The lowest of these limits, one by one."""
    return Limits(
        inputs_per_call=min(limit.inputs_per_call for limit in each),
        tokens_per_input=min(limit.tokens_per_input for limit in each),
        tokens_per_call=min(limit.tokens_per_call for limit in each),
        bytes_per_call=min(limit.bytes_per_call for limit in each),
    )


def has_exact_tokenizer(routes: Sequence[Route]) -> bool:
    """True when embedmill has the tokenizer of all these routes."""
    return all(map(token_estimator.is_exact_for, routes))


def pack(
    inputs: Sequence[Input],
    indexes: Sequence[int],
    limits: Limits,
    width: int,
    options: Options,
    *,
    single: bool = False,
    tokens_per_byte: float = token_estimator.DEFAULT_TOKENS_PER_BYTE,
    exact: bool = False,
    added_bytes: int = 0,
) -> Iterator[Batch]:
    """Pack inputs into batches, in order, each as large as all four limits allow.

    Tokens are estimated as `tokens_per_byte` times bytes; with `exact` they are counted where bounds do not decide. An
    input that breaks a limit by itself is sent alone: the upstream decides about it, not an estimate. `added_bytes`:
    what a template adds to each text.
    """
    if len(inputs) <= limits.inputs_per_call and set(map(type, inputs)) == {str}:
        batch = _batch_of_all(inputs, indexes, limits, width, options, single, tokens_per_byte, exact, added_bytes)
        if batch is not None:
            yield batch
            return
    builder = _BatchBuilder(limits, exact, added_bytes)
    start = 0
    for position, item in enumerate(inputs):
        if isinstance(item, str):
            size = token_estimator.utf8_bytes(item) + added_bytes
            weight = int(size * tokens_per_byte) + 1
        else:
            size = 0
            weight = len(item)
        limit = limits.tokens_per_input
        alone = not tokens.is_within(item, limit) if exact else weight > limit
        if position > start and (alone or not builder.try_add(item, size, weight)):
            yield builder.batch(inputs[start:position], indexes[start:position], width, options)
            start = position
            builder = _BatchBuilder(limits, exact, added_bytes)
            builder.try_add(item, size, weight)
        elif position == start:
            builder.try_add(item, size, weight)
        if alone:
            yield builder.batch(inputs[start : position + 1], indexes[start : position + 1], width, options, single)
            start = position + 1
            builder = _BatchBuilder(limits, exact, added_bytes)
    if start < len(inputs):
        yield builder.batch(inputs[start:], indexes[start:], width, options, single)


def _batch_of_all(
    texts: Sequence[Any],
    indexes: Sequence[int],
    limits: Limits,
    width: int,
    options: Options,
    single: bool,
    tokens_per_byte: float,
    exact: bool,
    added_bytes: int,
) -> Batch | None:
    """One batch of all these texts, where cheap bounds show that it keeps every limit; else None."""
    sizes = [len(text) if text.isascii() else token_estimator.utf8_bytes(text) for text in texts]
    if added_bytes and min(sizes):
        sizes = [size + added_bytes for size in sizes]
    all_bytes = sum(sizes)
    if all_bytes * 6 + BYTES_AROUND_AN_INPUT * len(sizes) + BYTES_AROUND_A_CALL > limits.bytes_per_call:
        return None
    estimates = [int(size * tokens_per_byte) + 1 for size in sizes]
    largest = max(sizes if exact else estimates)
    all_tokens = all_bytes if exact else sum(estimates)
    if largest > limits.tokens_per_input or all_tokens > limits.tokens_per_call or not min(sizes):
        return None
    count = min(sum(estimates), all_tokens)
    return Batch(texts, indexes, count, width, options, bytes=all_bytes, is_bare_string=single, added_bytes=added_bytes)


class _BatchBuilder:
    """The size of the batch that is being filled: by cheap upper bounds, which are replaced by counts where needed."""

    def __init__(self, limits: Limits, exact: bool, added_bytes: int) -> None:
        self._limits = limits
        self._added_bytes = added_bytes  # to each text, by a template
        self._exact = exact
        self._items: list[Input] = []
        self._tokens: list[int] = []  # of each input; an upper bound until counted
        self._bytes: list[int] = []
        self._all_tokens = 0
        self._all_bytes = BYTES_AROUND_A_CALL
        # So many of the first ones are counts, no bounds.
        self._tokens_counted = self._bytes_counted = 0
        self._estimate = self._text_bytes = 0
        self._only_texts = True

    def try_add(self, item: Input, size: int, weight: int) -> bool:
        """Add an input. False when that would break a limit; the first input is always added."""
        # A token has at least one byte; a byte of text becomes at most six of JSON, a token id at most eleven.
        tokens_bound = (size or weight) if self._exact else weight
        bytes_bound = (size * 6 if size else weight * 11) + BYTES_AROUND_AN_INPUT
        self._items.append(item)
        self._tokens.append(tokens_bound)
        self._bytes.append(bytes_bound)
        self._all_tokens += tokens_bound
        self._all_bytes += bytes_bound
        if len(self._items) > 1 and not self._fits():
            self._items.pop()
            self._all_tokens -= self._tokens.pop()
            self._all_bytes -= self._bytes.pop()
            return False
        self._estimate += weight
        self._text_bytes += size
        self._only_texts = self._only_texts and size > 0
        return True

    def _fits(self) -> bool:
        limits = self._limits
        if len(self._items) > limits.inputs_per_call:
            return False
        if self._all_tokens > limits.tokens_per_call:
            if not self._exact:
                return False
            for i in range(self._tokens_counted, len(self._items)):
                self._tokens[i] = tokens.count(self._items[i]) + self._added_bytes
            self._all_tokens, self._tokens_counted = sum(self._tokens), len(self._items)
            if self._all_tokens > limits.tokens_per_call:
                return False
        if self._all_bytes > limits.bytes_per_call:
            for i in range(self._bytes_counted, len(self._items)):
                self._bytes[i] = _json_bytes(self._items[i]) + self._added_bytes * 6 + BYTES_AROUND_AN_INPUT
            self._all_bytes, self._bytes_counted = BYTES_AROUND_A_CALL + sum(self._bytes), len(self._items)
        return self._all_bytes <= limits.bytes_per_call

    def batch(
        self, inputs: Sequence[Input], indexes: Sequence[int], width: int, options: Options, single: bool = False
    ) -> Batch:
        """The batch of these inputs, which were added."""
        counted = min(self._estimate, self._all_tokens) if self._exact else self._estimate
        text_bytes = self._text_bytes if self._only_texts else 0
        return Batch(
            inputs,
            indexes,
            counted,
            width,
            options,
            bytes=text_bytes,
            is_bare_string=single,
            added_bytes=self._added_bytes,
        )


def _json_bytes(item: Input) -> int:
    try:
        return len(msgspec.json.encode(item))
    except UnicodeEncodeError:  # a lone surrogate: no provider takes it; count its escaped size
        return 6 * len(item)


def is_within(batch: Batch, limits: Limits) -> bool:
    """True when the batch's inputs, estimated tokens and text bytes keep the limits."""
    return (
        len(batch.inputs) <= limits.inputs_per_call
        and batch.tokens <= limits.tokens_per_call
        and batch.bytes <= limits.bytes_per_call
    )


def split_to_fit(batch: Batch, limits: Limits) -> Iterator[Batch]:
    """The batch in as few parts as keep the limits, by the measure of `is_within`."""
    parts = 1
    start = 0
    while start < len(batch.inputs):
        stop = start + max(1, -(-(len(batch.inputs) - start) // parts))
        piece = slice_batch(batch, start, stop)
        if len(piece.inputs) > 1 and not is_within(piece, limits):
            parts += 1
            continue
        yield piece
        start, parts = stop, max(1, parts - 1)


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The two halves of the batch, in order."""
    whole = replace(batch, is_bare_string=False)
    middle = len(batch.inputs) // 2
    return slice_batch(whole, 0, middle), slice_batch(whole, middle, len(batch.inputs))


def slice_batch(batch: Batch, start: int, stop: int) -> Batch:
    """The inputs of the batch at positions start to stop."""
    return select(batch, range(start, stop))


def select(batch: Batch, positions: Sequence[int]) -> Batch:
    """The inputs of the batch at these positions, in this order."""
    inputs = [batch.inputs[i] for i in positions]
    indexes = [batch.indexes[i] for i in positions]
    whole = len(inputs) == len(batch.inputs)
    text_bytes = 0
    count = sum(map(token_estimator.estimate, inputs))
    if batch.bytes:
        text_bytes = sum(token_estimator.utf8_bytes(item) for item in inputs if isinstance(item, str))
        text_bytes += batch.added_bytes * len(inputs)
        count = max(len(inputs), round(batch.tokens * text_bytes / batch.bytes))
    return replace(
        batch,
        inputs=inputs,
        indexes=indexes,
        tokens=count,
        bytes=text_bytes,
        is_bare_string=batch.is_bare_string and whole,
    )
