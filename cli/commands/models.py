"""`embedmill models`: the models of a server."""

from __future__ import annotations

from cli.commands.options import ApiKeyOption, JsonOption, UrlOption


def models(as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """List the models that the server offers to this key."""
    from cli.client.api_client import MODELS, connect
    from cli.output.model_table import print_models
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(MODELS))
        else:
            print_models(client.models())
