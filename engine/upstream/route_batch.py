"""The batch as one route's provider is to see it: its native width, its words around a text, texts for token arrays."""

from __future__ import annotations

from dataclasses import replace

from engine.planning import tokens
from engine.planning.templates import TEXT, template_of
from models.embedding import Batch, Input, Route


def batch_for(batch: Batch, route: Route) -> Batch:
    """The same inputs in the same order, in the provider's form. Nearly always the batch itself."""
    if batch.width != route.width and route.narrowing == "cut":
        batch = replace(batch, width=route.width)
    if route.token_arrays is not None and any(isinstance(item, list) for item in batch.inputs):
        batch = replace(batch, inputs=[_text(item) for item in batch.inputs], bytes=0)
    if batch.options.input_type is not None and batch.options.input_type in route.templates:
        batch = _in_template(batch, route)
    return batch


def _in_template(batch: Batch, route: Route) -> Batch:
    # The words carry the meaning: a field beside them would say it twice.
    options = replace(batch.options, input_type=None)
    template = template_of(route, batch.options.input_type)
    if template is None:
        return replace(batch, options=options)
    before, _, after = template.partition(TEXT)
    return replace(batch, options=options, inputs=[f"{before}{_text(item)}{after}" for item in batch.inputs])


def _text(item: Input) -> str:
    return item if isinstance(item, str) else tokens.decode(item)
