"""Options that several commands share, so that they read and behave alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import typer

from cli.errors import UsageError

UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="EMBEDMILL_URL", help="The server. Default: the one started here by `embedmill up`."),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="EMBEDMILL_API_KEY",
        help="A key. Default: the one that `embedmill up` keeps in its data directory. Others on this machine can see "
        "arguments: prefer the environment variable.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
LimitOption = Annotated[int, typer.Option(min=1, max=100, help="How many.")]
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "": 1}


def id_check(what: str, prefix: str, list_command: str) -> Callable[[str], str]:
    """A check of an id as it was typed: it is a part of the request's path. It raises UsageError."""

    def checked(text: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
            raise UsageError(
                f"{text!r} is no {what}'s id", f"`{list_command}` shows the ids; each begins with {prefix}"
            )
        return text

    return checked


def seconds_of(text: str | None) -> int | None:
    """`90s`, `30m`, `24h` and `7d` in seconds; a number alone is seconds. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no time", "write it as 3600, 90m, 24h or 7d")
    return int(found[1]) * UNIT_S[found[2]]
