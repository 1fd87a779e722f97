"""From the model and the options of a request to the alias that serves it: one way for sync calls and jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engine.planning.templates import with_room_for_templates
from engine.routing.option_warnings import traits_of, unsupported
from engine.routing.router import apply_gateway_options
from models.embedding import Alias, Options
from models.errors import UnsupportedParameter
from providers.caller_options import GATEWAY, checked_options


def choose_model(aliases: Mapping[str, Alias], alias: Alias, options: Options) -> tuple[Alias, Options]:
    """The alias with the routes that the options leave, and the options as they are sent.

    Raises InvalidInput, UnsupportedParameter or UnknownAlias that names the field.
    """
    if options.provider_options:
        options = checked_options(options, apply_gateway_options(aliases, alias, options.provider_options), traits_of)
        alias = with_callers_routes(aliases, alias, options)
    return with_room_for_templates(alias, options), options


def with_callers_routes(aliases: Mapping[str, Alias], alias: Alias, options: Options) -> Alias:
    """The alias with the routes that the options leave, in their order. Raises as `choose_model` does."""
    section = options.provider_options.get(GATEWAY)
    if not section:
        return alias
    alias = apply_gateway_options(aliases, alias, options.provider_options)
    return _strict(alias, options) if section.get("strict") is True else alias


def _strict(alias: Alias, options: Options) -> Alias:
    """The alias with the routes that honour every option. Raises UnsupportedParameter when none does."""
    problems = [(route, unsupported(options, route)) for route in alias.routes]
    routes = tuple(route for route, problem in problems if problem is None)
    if not routes:
        problem = next(each for _, each in problems if each is not None)
        raise UnsupportedParameter(
            f"Invalid '{problem.feature}': {problem.details}. Leave it out, or send without 'strict'.",
            param=problem.feature,
            code="unsupported_parameter",
        )
    return alias if len(routes) == len(alias.routes) else replace(alias, routes=routes)
