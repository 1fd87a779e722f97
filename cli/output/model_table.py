"""The models of a server, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from cli.client.types import Endpoint, Model, Quota
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


def price(model: Model | Endpoint) -> str:
    """`0.02`: USD for a million tokens, from the price of one."""
    if "input" not in model.pricing:
        return ""
    return f"{(Decimal(model.pricing['input']) * 1_000_000).normalize():f}"


def print_endpoints(endpoints: Sequence[Endpoint]) -> None:
    """One line a route, then the reason of each that is not called."""
    rows = [
        [
            each.provider,
            each.upstream_model,
            str(each.priority),
            price(each),
            "probing" if each.breaker.state == "half_open" else each.status,
            " / ".join(_number(each.latency_ms.get(name), "{:.0f}") for name in ("p50", "p95")),
            " / ".join(_number(each.success_rate.get(name), "{:.1%}") for name in ("15m", "1h", "1d")),
            _left(each.quota.get("requests_per_minute")),
            _left(each.quota.get("tokens_per_minute")),
        ]
        for each in endpoints
    ]
    right = ("priority", "$/M tokens", "p50 / p95 ms", "answered 15m / 1h / 1d", "requests/min", "tokens/min")
    columns = ("upstream model", "priority", "$/M tokens", "status", *right[2:])
    out.print(table("provider", *columns, rows=rows, right=right))
    for each in endpoints:
        if each.breaker.reason is not None:
            out.print(f"{each.provider}, {each.upstream_model}: {each.breaker.reason}", markup=False)


def _number(value: float | str | None, form: str) -> str:
    return form.format(value) if isinstance(value, float | int) else "-"


def _left(quota: Quota | None) -> str:
    """`180 of 500`: what is left of a quota, where it is known."""
    if quota is None or quota.limit is None:
        return ""
    return f"{quota.limit:,}" if quota.remaining is None else f"{quota.remaining:,} of {quota.limit:,}"
