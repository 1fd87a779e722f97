"""Chooses the model of a command: the named one, the only one, or the one that the user picks."""

from __future__ import annotations

import sys

from cli.client.types import Model
from cli.errors import CliError, NotFound, UsageError
from cli.output.model_table import price
from cli.output.terminal import err


def choose_model(models: list[Model], name: str | None) -> str:
    """The named model, else the only one, else the one that the user picks at the terminal.

    Raises UsageError that lists what there is, CliError where there is none.
    """
    names = sorted(model.id for model in models)
    if name is not None and name in names:
        return name
    if not names:
        raise CliError("this key may use no model of the server", "ask for a key that may")
    if name is None and len(names) == 1:
        return names[0]
    if name is None and err.is_terminal and sys.stdin is not None and sys.stdin.isatty():
        return _ask(sorted(models, key=lambda model: model.id))
    problem = f"the server has no model {name!r}" if name else "the server has several models"
    kind = NotFound if name else UsageError
    raise kind(problem, f"choose with --model: {', '.join(names)}")


def _ask(models: list[Model]) -> str:
    """Ask on the terminal, by number or by name."""
    err.print("Which model?")
    for number, model in enumerate(models, 1):
        cost = f", ${price(model)} per million tokens" if price(model) else ""
        width = f"  {model.dimensions} wide" if model.dimensions else ""
        err.print(f"  {number}  {model.id}{width}{cost}", markup=False)
    while True:
        err.print(f"1 to {len(models)}, or a name: ", end="")
        err.file.flush()
        answer = sys.stdin.readline()
        if not answer:
            raise UsageError("no model was chosen", "choose with --model")
        answer = answer.strip()
        if answer.isdecimal() and 1 <= int(answer) <= len(models):
            return models[int(answer) - 1].id
        if any(model.id == answer for model in models):
            return answer
