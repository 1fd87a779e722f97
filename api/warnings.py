"""`providerMetadata.gateway.warnings`: what of a request was not honoured, and which figures are not the provider's."""

from __future__ import annotations

from collections.abc import Sequence

from engine.routing.ignored_options import ignored_options
from models.embedding import Call, Options, Route


def warnings_of(options: Options, calls: Sequence[Call], final: Route) -> list[dict[str, str]]:
    """Nearly always none, which costs a look at each call."""
    found: list[dict[str, str]] = []
    if options.provider_options or options.input_type:
        found += (_warning("unsupported", *each) for each in ignored_options(options, [final]))
    doubtful = next((call for call in calls if call.doubt is not None), None)
    if doubtful is not None:
        said = f"{doubtful.provider} reports a number of tokens that is not believed ({doubtful.doubt})"
        found.append(_warning("other", "usage", f"{said}: usage and cost are estimated"))
    return found


def _warning(kind: str, feature: str, details: str) -> dict[str, str]:
    return {"type": kind, "feature": feature, "details": details}
