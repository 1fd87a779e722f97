"""Prints the estimate of a dry run."""

from __future__ import annotations

from decimal import Decimal

from cli.client.types import Estimate
from cli.output.terminal import duration, out

SHOWN_ERRORS = 3


def print_estimate(estimate: Estimate) -> None:
    """Print one line for each figure."""
    about_prefix = "about " if estimate.estimated else ""
    margin = f" ± {estimate.tokens_margin:,}, from a sample" if estimate.tokens_margin else ""
    inputs = f"{estimate.inputs:,}"
    if estimate.duplicates:
        inputs += f", {estimate.duplicates:,} of them duplicates that cost nothing"
    cost = f"{about_prefix}${estimate.cost_usd.normalize():f}"
    if estimate.duplicates:
        cost += f"; each duplicate for itself: ${estimate.cost_usd_with_duplicates.normalize():f}"
    time_text = (
        "no quota is configured" if estimate.eta_seconds is None else f"{duration(estimate.eta_seconds)} by quota"
    )
    facts = [
        ("model", f"{estimate.model}, {estimate.dimensions} wide"),
        ("inputs", inputs),
        ("tokens", f"{about_prefix}{estimate.tokens:,}{margin}"),
        ("calls", f"{estimate.calls:,}"),
        ("cost", cost),
        ("time", time_text),
    ]
    if estimate.max_cost_usd is not None:
        facts.append(("ceiling", _ceiling_text(estimate, estimate.max_cost_usd)))
    if estimate.refused_inputs:
        facts.append(("refused", f"{estimate.refused_inputs:,}"))
    for name, fact in facts:
        out.print(f"{name:<8}{fact}", markup=False)
    for group in estimate.errors[:SHOWN_ERRORS]:
        example = f", first at index {group.example_index:,}" if group.example_index is not None else ""
        out.print(f"        {group.count:,} × {group.code}{example}: {group.message}", markup=False)


def _ceiling_text(estimate: Estimate, ceiling: Decimal) -> str:
    """Whether the estimated cost stays below the ceiling."""
    ceiling_text = f"${ceiling.normalize():f}"
    if estimate.within_max_cost:
        return f"{ceiling_text} is enough"
    if estimate.cost_usd <= ceiling:
        return f"{ceiling_text} may not be enough, by the margin of the sample: then the job would be paused"
    share = int(100 * ceiling / estimate.cost_usd)
    return (
        f"{ceiling_text} is not enough: the job would be paused after about {share} % of the work, and can be resumed"
    )
