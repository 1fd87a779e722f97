"""Options that several commands share, so that they read and behave alike."""

from __future__ import annotations

from typing import Annotated

import typer

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
