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
def endpoints(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Show the routes of a model: price, state, latency, success rate and quota of each."""
    from cli.client.api_client import connect, endpoints_path
    from cli.output.model_table import print_endpoints
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(endpoints_path(model)))
        else:
            print_endpoints(client.endpoints(model))


@app.command()
def refresh(
    source: Annotated[Path, typer.Option("--from", metavar="FILE", help="The newer table of models, TOML.")],
) -> None:
    """Take a newer table of well-known models and prices; API and workers use it from their next start on.

    Its models replace those of the same names; the built-in ones that it does not name stay.
    """
    import os
    import tempfile

    from cli.config_file import with_config
    from cli.output.terminal import out
    from engine.config import config_file
    from engine.config.catalog import REFRESHED, read_catalog
    from engine.config.settings import Settings
    from engine.process.data_folder import make_data_folder

    settings = Settings.from_environment(with_config(os.environ))
    catalog = read_catalog(source)
    with tempfile.TemporaryDirectory() as folder:  # a table that breaks the configuration is not taken
        (Path(folder) / REFRESHED).write_bytes(source.read_bytes())
        config_file.load(settings.config, data_dir=Path(folder))
    make_data_folder(settings.data_dir)
    target = settings.data_dir / REFRESHED
    part = target.with_suffix(".part")  # replaced at once, so that nobody reads half of it
    part.write_bytes(source.read_bytes())
    part.replace(target)
    out.print(f"{len(catalog.models)} models are in {target}; restart API and workers to use them", markup=False)
