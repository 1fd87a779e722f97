"""`embedmill doctor`: the command and its options."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, UrlOption


def doctor(
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    release: Annotated[
        str | None, typer.Option(metavar="ACCOUNT", help="Let an account serve again that failed its drift check.")
    ] = None,
    providers: Annotated[
        bool, typer.Option("--providers", help="Try each account with one small call, which its provider may bill.")
    ] = False,
) -> None:
    """Check this installation: each line says ok, warn or fail, and what to do."""
    from cli.commands.doctor.report import diagnose

    raise typer.Exit(diagnose(url=url, api_key=api_key, as_json=as_json, release=release, providers=providers))
