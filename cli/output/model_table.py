"""The models of a server, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from cli.client.types import Model
from cli.output.terminal import out, table


def print_models(models: Sequence[Model]) -> None:
    """One line a model; prices are per million tokens."""
    rows = [
        [
            model.id,
            str(model.dimensions or ""),
            f"{model.max_input_tokens:,}" if model.max_input_tokens else "",
            price(model),
            ", ".join(model.providers),
            model.space or "",
        ]
        for model in models
    ]
    numbers = ("width", "tokens", "$/M tokens")
    out.print(table("model", *numbers, "providers", "space", rows=rows, right=numbers))


def price(model: Model) -> str:
    """`0.02`: USD for a million tokens, from the price of one."""
    if "input" not in model.pricing:
        return ""
    return f"{(Decimal(model.pricing['input']) * 1_000_000).normalize():f}"
