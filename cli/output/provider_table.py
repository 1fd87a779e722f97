"""The kinds of providers and what each can do, as rows: for `embedmill providers` and docs/providers.md."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import providers
from providers.traits import Traits

BEGIN, END = "<!-- kinds: made by `make docs` -->", "<!-- end of kinds -->"
COLUMNS = (
    "kind",
    "what",
    "width",
    "input_type",
    "truncate",
    "base64",
    "tokens",
    "user",
    "usage",
    "inputs",
    "settings",
    "key",
)


def provider_rows() -> list[list[str]]:
    """One row a kind, in the order of the columns; a dash where it cannot."""
    return [_row(provider.traits) for provider in providers.PROVIDERS.values()]


def with_table(page: str) -> str:
    """The page with the table between its two markers made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{_markdown()}{END}{after}"


def _markdown() -> str:
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for kind, *cells in provider_rows():
        lines.append(_line([f"`{kind}`", *(cell.replace("|", "\\|") for cell in cells)]))
    return "\n".join(lines) + "\n"


def _row(traits: Traits) -> list[str]:
    if not traits.can_embed:
        return [traits.kind, traits.title, *["-"] * (len(COLUMNS) - 2)]
    return [
        traits.kind,
        traits.title,
        f"`{traits.width_field}`" if traits.width_field else "cut here",
        _field(traits.input_type.name, traits.input_type.values) if traits.input_type else "words",
        _truncation(traits),
        "yes" if traits.base64 else "-",
        "yes" if traits.accepts_tokens else "-",
        "yes" if traits.user_field else "-",
        {"tokens": "tokens", "none": "estimated", "characters": "estimated"}[traits.usage],
        str(traits.limits.inputs_per_call),
        ", ".join(f"`{name}`" for name in traits.settings) or "-",
        ", ".join([*traits.key_variables, *_variables(traits)]) or "-",
    ]


def _truncation(traits: Traits) -> str:
    if traits.truncate is not None:
        return _field(traits.truncate.name, traits.truncate.values)
    return "cuts by itself" if traits.cuts_silently else "-"


def _field(name: str, values: Iterable[str]) -> str:
    return f"`{name}`: {', '.join(values)}"


def _variables(traits: Traits) -> list[str]:
    return [variable for setting in traits.settings.values() for variable in setting.variables[:1]]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_table(path.read_text("utf-8")), "utf-8")
