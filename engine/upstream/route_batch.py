"""The batch as one route's provider is to see it, and its vectors as the caller is to see them.

Its native width, the model's words around a text, texts in place of token arrays, and for `truncate: "mean"` the
windows of an input that is too long, which travel in one call and come back as one vector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from engine.planning import tokens
from engine.planning.templates import TEXT, template_of, template_tokens
from engine.storage import vectors
from models.embedding import Batch, Input, Matrix, Route
from models.errors import UpstreamRejected


@dataclass(frozen=True, slots=True)
class Windows:
    """Inputs that travel in several pieces: how many pieces each input has, and the tokens of each piece."""

    counts: list[int]
    weights: list[int]

    def joined(self, rows: Matrix) -> Matrix:
        """One unit vector for each input: the mean of its pieces' vectors, weighted by their tokens."""
        starts = np.cumsum([0, *self.counts[:-1]])
        weights = np.asarray(self.weights, dtype=np.float32)[:, None]
        sums = np.add.reduceat(rows * weights, starts, axis=0)
        whole = np.asarray(self.counts)[:, None] == 1
        return np.where(whole, rows[starts], vectors.normalized(sums)).astype(np.float32, copy=False)

    @property
    def positions(self) -> list[int]:
        """The inputs that travel in more than one piece."""
        return [position for position, count in enumerate(self.counts) if count > 1]


def batch_for(batch: Batch, route: Route) -> tuple[Batch, Windows | None]:
    """The same inputs in the same order, in the provider's form. Nearly always the batch itself, without windows.

    Raises UpstreamRejected where windows that were made shorter are too many for one call.
    """
    windows = None
    if batch.width != route.width and route.narrowing == "cut":
        batch = replace(batch, width=route.width)
    if batch.options.truncate == "mean":
        batch, windows = _in_windows(batch, route)
    if route.token_arrays is not None and any(isinstance(item, list) for item in batch.inputs):
        batch = replace(batch, inputs=[_text(item, route) for item in batch.inputs], bytes=0)
    if batch.options.input_type is not None and batch.options.input_type in route.templates:
        batch = _in_template(batch, route)
    return batch, windows


def _in_windows(batch: Batch, route: Route) -> tuple[Batch, Windows | None]:
    """The batch in windows. Raises UpstreamRejected where windows that were made shorter are too many for one call."""
    limit = max(1, int(window_tokens(route, batch.options.input_type) * batch.window_share))
    pieces = [tokens.windows(item, limit) for item in batch.inputs]
    counts = [len(each) for each in pieces]
    if max(counts) == 1:
        return batch, None
    inputs = [piece for each in pieces for piece, _ in each]
    if batch.window_share < 1 and len(inputs) > route.limits.inputs_per_call:
        raise UpstreamRejected(
            "the windows that the model takes are too many for one call", code="input_too_long", sent=False
        )
    windows = Windows(counts, [count for each in pieces for _, count in each])
    # Positions stand for inputs of this call only: the caller's indexes belong to the whole inputs.
    return replace(batch, inputs=inputs, indexes=range(len(inputs)), is_bare_string=False), windows


def window_tokens(route: Route, input_type: str | None) -> int:
    """The tokens of a window. Where the tokenizer is not the model's, a tenth is left for the difference."""
    limit = route.limits.tokens_per_input - template_tokens(route, input_type)
    return max(1, limit if route.tokenizer is not None else limit * 9 // 10)


def _in_template(batch: Batch, route: Route) -> Batch:
    # The words carry the meaning: a field beside them would say it twice.
    options = replace(batch.options, input_type=None)
    template = template_of(route, batch.options.input_type)
    if template is None:
        return replace(batch, options=options)
    before, _, after = template.partition(TEXT)
    return replace(batch, options=options, inputs=[f"{before}{_text(item, route)}{after}" for item in batch.inputs])


def _text(item: Input, route: Route) -> str:
    return item if isinstance(item, str) else tokens.decode(item, route.token_arrays or tokens.CL100K)
