"""Fields of a request that changed nothing, and why: told in the answer of a sync call, and in a job's warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.routing import gateway_options
from models.embedding import Options, Route
from providers.caller_options import GATEWAY

# Providers that send nothing of a caller's own.
TAKE_NO_OPTIONS = frozenset({"local"})


def not_honoured(options: Options, routes: Sequence[Route]) -> Iterator[tuple[str, str]]:
    """Field and reason. `routes`: that which served the call, or those that may."""
    who = ", ".join(dict.fromkeys(route.provider for route in routes))
    if options.input_type:
        yield "input_type", f"{who} takes none for this model: it was left out"
    takers = {
        name
        for route in routes
        if route.account.kind not in TAKE_NO_OPTIONS
        for name in (route.account.name, route.account.kind)
    }
    for provider, section in options.provider_options.items():
        if provider == GATEWAY:
            yield from gateway_options.left_out(section)
        elif section and provider not in takers:
            yield f"providerOptions.{provider[:100]}", f"they were not sent: {who} serves this model here"
