"""Text templates: what a model wants around a text, by the meaning of the input. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from engine.planning import tokens
from models.embedding import Alias, Options, Route

TEXT = "{text}"


def template_of(route: Route, input_type: str | None) -> str | None:
    """The route's template for this meaning; None where it has none, or none that adds anything."""
    template = route.templates.get(input_type) if input_type else None
    return None if template == TEXT else template


def takes_token_arrays(route: Route, input_type: str | None) -> bool:
    """True when the route can embed token arrays of this meaning: words go around texts only."""
    if template_of(route, input_type) is None:
        return route.takes_token_arrays
    return route.token_arrays is not None


def added_bytes(routes: Sequence[Route], options: Options) -> int:
    """The most bytes that a template of these routes adds to each text."""
    if options.input_type is None:
        return 0
    return max(len(template.encode()) - len(TEXT) if template else 0 for template in _templates(routes, options))


def with_room_for_templates(alias: Alias, options: Options) -> Alias:
    """The alias with its longest input lowered by what its templates add, so that text and template fit the model."""
    if options.input_type is None:
        return alias
    added = max(template_tokens(route, options.input_type) for route in alias.routes)
    return replace(alias, max_input_tokens=max(1, alias.max_input_tokens - added)) if added else alias


def template_tokens(route: Route, input_type: str | None) -> int:
    """Tokens that the route's template for this meaning adds to a text."""
    template = template_of(route, input_type)
    return _tokens(template) if template else 0


def _templates(routes: Sequence[Route], options: Options) -> list[str | None]:
    return [template_of(route, options.input_type) for route in routes]


@lru_cache(maxsize=256)
def _tokens(template: str) -> int:
    return tokens.count(template.replace(TEXT, " "))
