"""`providerMetadata.gateway.warnings`: what of a request was not honoured, and which figures are not the provider's."""

from __future__ import annotations

from collections.abc import Sequence

from engine.routing.ignored_options import ignored_options
from models.embedding import Call, Options, Route


def warnings_of(options: Options, calls: Sequence[Call], final: Route) -> list[dict[str, str]]:
    """Nearly always none, which costs a look at each call."""
    warnings: list[dict[str, str]] = []
    if options.provider_options or options.input_type:
        warnings += (_warning("unsupported", *pair) for pair in ignored_options(options, [final]))
    doubted = next((call for call in calls if call.usage_doubt is not None), None)
    if doubted is not None:
        reason = f"{doubted.provider} reports a number of tokens that is not believed ({doubted.usage_doubt})"
        warnings.append(_warning("other", "usage", f"{reason}: usage and cost are estimated"))
    return warnings


def _warning(kind: str, feature: str, details: str) -> dict[str, str]:
    return {"type": kind, "feature": feature, "details": details}
