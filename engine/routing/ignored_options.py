"""Fields of a request that had no effect, and why: in the reply of a sync call, and in a job's warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.routing import gateway_options
from models.embedding import Options, Route
from providers.caller_options import GATEWAY

# Kinds of providers that send nothing of a caller's own.
KINDS_WITHOUT_OPTIONS = frozenset({"local"})


def ignored_options(options: Options, routes: Sequence[Route]) -> Iterator[tuple[str, str]]:
    """Pairs of field and reason. `routes`: the one that served the call, or those that may."""
    providers = ", ".join(dict.fromkeys(route.provider for route in routes))
    if options.input_type:
        yield "input_type", f"{providers} takes none for this model: it was left out"
    names = {
        name
        for route in routes
        if route.account.kind not in KINDS_WITHOUT_OPTIONS
        for name in (route.account.name, route.account.kind)
    }
    for provider, section in options.provider_options.items():
        if provider == GATEWAY:
            yield from gateway_options.ignored(section)
        elif section and provider not in names:
            yield f"providerOptions.{provider[:100]}", f"they were not sent: {providers} serves this model here"
