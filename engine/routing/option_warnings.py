"""Options of a request that a route does not honour, or that it lacks: warnings of an answer or a job, or refusals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import providers
from engine.routing import gateway_options
from models.embedding import Options, Route
from providers.caller_options import GATEWAY
from providers.traits import Traits

# Kinds of providers that send nothing of a caller's own.
KINDS_WITHOUT_OPTIONS = frozenset({"local"})


class OptionWarning(NamedTuple):
    """A field of the request, and what became of it."""

    type: Literal["unsupported", "compatibility"]
    feature: str
    details: str


def may_warn(options: Options, route: Route) -> bool:
    """False, cheaply, for nearly all calls: `option_warnings` would yield nothing."""
    return bool(options.provider_options or options.input_type or options.user or route.is_asymmetric)


def option_warnings(options: Options, routes: Sequence[Route]) -> Iterator[OptionWarning]:
    """The warnings for a call. `routes`: the one that served it, or those that may."""
    names = ", ".join(dict.fromkeys(route.provider for route in routes))
    yield from _input_type(options, routes, names)
    if options.user and all(traits_of(route).user_field is None for route in routes):
        yield OptionWarning("unsupported", "user", f"{names} takes none: it was left out")
    known = {
        name
        for route in routes
        if route.account.kind not in KINDS_WITHOUT_OPTIONS
        for name in (route.account.section, route.account.kind)
    }
    for provider, section in options.provider_options.items():
        if provider == GATEWAY:
            for field, why in gateway_options.ignored(section):
                yield OptionWarning("unsupported", field, why)
        elif section and provider not in known:
            field = f"providerOptions.{provider[:100]}"
            yield OptionWarning("unsupported", field, f"they were not sent: {names} serves this model here")


def unsupported(options: Options, route: Route) -> OptionWarning | None:
    """The first option of the request that the route would leave out."""
    return next((each for each in option_warnings(options, [route]) if each.type == "unsupported"), None)


def _input_type(options: Options, routes: Sequence[Route], names: str) -> Iterator[OptionWarning]:
    input_type = options.input_type
    if input_type is None:
        if any(route.is_asymmetric for route in routes):
            yield OptionWarning(
                "compatibility",
                "input_type",
                "this model embeds queries and documents differently: send input_type, or searches find less",
            )
        return
    for route in routes:
        field = traits_of(route).input_type
        words = set(route.templates) | set(field.values if field is not None else ())
        if input_type not in words:
            takes = f"it takes {', '.join(sorted(words))}" if words else "it takes none for this model"
            yield OptionWarning("unsupported", "input_type", f"{route.provider or names}: {takes}; it was left out")
            return


def traits_of(route: Route) -> Traits:
    """What the route's provider takes and does, for this model."""
    return providers.PROVIDERS[route.account.kind].traits_of(route.upstream_model)
