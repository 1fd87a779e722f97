"""What a corpus would become, as a server estimates it, in a few lines."""

from __future__ import annotations

from cli.job import Estimate
from cli.terminal import duration, out

SHOWN_ERRORS = 3


def print_estimate(estimate: Estimate) -> None:
    """A line for each figure, with what it means where that is not plain."""
    about = "about " if estimate.estimated else ""
    inputs = f"{estimate.inputs:,}"
    if estimate.duplicates:
        inputs += f", {estimate.duplicates:,} of them duplicates that cost nothing"
    cost = f"{about}${estimate.cost_usd.normalize():f}"
    if estimate.duplicates:
        cost += f"; each duplicate for itself: ${estimate.cost_usd_with_duplicates.normalize():f}"
    took = "no quota is configured" if estimate.eta_seconds is None else f"{duration(estimate.eta_seconds)} by quota"
    facts = [
        ("model", f"{estimate.model}, {estimate.dimensions} wide"),
        ("inputs", inputs),
        ("tokens", f"{about}{estimate.tokens:,}"),
        ("calls", f"{estimate.calls:,}"),
        ("cost", cost),
        ("time", took),
    ]
    if estimate.refused_inputs:
        facts.append(("refused", f"{estimate.refused_inputs:,}"))
    for name, fact in facts:
        out.print(f"{name:<8}{fact}", markup=False)
    for group in estimate.errors[:SHOWN_ERRORS]:
        example = f", first at index {group.example_index:,}" if group.example_index is not None else ""
        out.print(f"        {group.count:,} × {group.code}{example}: {group.message}", markup=False)
