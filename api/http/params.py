"""Query parameters, parsed by hand: each fault names its parameter."""

from __future__ import annotations

from fastapi import Request

from engine.config.suggestions import did_you_mean
from models.errors import InvalidInput


def int_param(
    request: Request, name: str, *, default: int | None = None, low: int = 0, high: int | None = None
) -> int | None:
    """The query parameter as a whole number in `low..high`, or `default`. Raises InvalidInput that names it."""
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        value = int(text)
    except ValueError:
        raise InvalidInput(f"Invalid '{name}': expected a whole number.", param=name, code="invalid_value") from None
    if value < low or (high is not None and value > high):
        bounds = f"{low} to {high}" if high is not None else f"{low} or more"
        raise InvalidInput(f"Invalid '{name}': expected {bounds}.", param=name, code="invalid_value")
    return value


def choice_param(request: Request, name: str, values: tuple[str, ...]) -> str:
    """The query parameter as one of `values`, or the first of them. Raises InvalidInput that names it."""
    value = request.query_params.get(name, values[0])
    if value not in values:
        raise InvalidInput(
            f"Invalid '{name}': '{value[:40]}'. Supported: {', '.join(values)}.", param=name, code="invalid_value"
        )
    return value


def reject_unknown_params(request: Request, *names: str) -> None:
    """Refuse query parameters other than `names`. Raises InvalidInput."""
    for name in request.query_params:
        if name not in names:
            raise InvalidInput(
                f"Unknown parameter: '{name[:100]}'.{_advice(name, names)}",
                param=name[:100],
                code="unknown_parameter",
            )


def _advice(name: str, names: tuple[str, ...]) -> str:
    if not names:
        return " The query of this call takes none: what a body says belongs into the body."
    return did_you_mean(name, names) or f" The query of this call takes {', '.join(names)}."
