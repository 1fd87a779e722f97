"""`embedmill models …`: the models of a server, and the table of well-known models of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, UrlOption

app = typer.Typer(help="List the models that the server offers to this key.")


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context, as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None
) -> None:
    """List the models that the server offers to this key."""
    if context.invoked_subcommand is not None:
        return
    from cli.client.api_client import MODELS, connect
    from cli.output.model_table import print_models
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(MODELS))
        else:
            print_models(client.models())


@app.command()
def refresh(
    source: Annotated[Path, typer.Option("--from", metavar="FILE", help="The newer table of models, TOML.")],
) -> None:
    """Take a newer table of well-known models and prices; API and workers use it from their next start on.

    Its models replace those of the same names; the built-in ones that it does not name stay.
    """
    import os

    from cli.config_file import with_config
    from cli.output.terminal import out
    from engine.config import config_file
    from engine.config.catalog import REFRESHED, read_catalog
    from engine.config.settings import Settings
    from engine.process.data_folder import make_data_folder

    settings = Settings.from_environment(with_config(os.environ))
    catalog = read_catalog(source)
    make_data_folder(settings.data_dir)
    target = settings.data_dir / REFRESHED
    former = target.read_bytes() if target.is_file() else None
    _write(target, source.read_bytes())
    try:  # a configuration that this table breaks must keep the former one
        config_file.load(settings.config, data_dir=settings.data_dir)
    except BaseException:
        if former is None:
            target.unlink()
        else:
            _write(target, former)
        raise
    out.print(f"{len(catalog.models)} models are in {target}; restart API and workers to use them", markup=False)


def _write(target: Path, content: bytes) -> None:
    """Replace the file at once, so that nobody reads half of it."""
    part = target.with_suffix(".part")
    part.write_bytes(content)
    part.replace(target)
