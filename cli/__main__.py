"""The command `embedmill`. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import jobs, keys, processes
from cli.errors import CliError, ExitCode
from cli.options import ApiKeyOption, JsonOption, UrlOption
from models.errors import EmbedmillError

DAILY = "Everyday commands"
OPERATIONS = "Operation"

app = typer.Typer(
    name="embedmill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="""Batch embeddings: a gateway to many providers, and durable bulk jobs.

Start everything on this machine, then embed a file:

- `embedmill up`
- `embedmill embed texts.jsonl --out vectors.npy`

Exit codes: 0 done · 1 failed · 2 wrong usage · 3 finished, but some inputs have errors
""",
)
app.add_typer(jobs.app, name="jobs", rich_help_panel=DAILY)
app.add_typer(keys.app, name="keys", rich_help_panel=OPERATIONS)


class Truncate(StrEnum):
    NONE = "none"
    END = "end"


@app.command(rich_help_panel=DAILY)
def up(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080,
    data_dir: Annotated[
        Path, typer.Option(envvar="EMBEDMILL_DATA_DIR", help="Database, keys and the embedded Valkey live here.")
    ] = Path(".embedmill"),
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for bulk jobs.")] = 2,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="EMBEDMILL_CONFIG",
            help="Accounts and models. Default: embedmill.toml here, else the built-in local model.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Keep the processes' lines in DATA_DIR/logs instead.")
    ] = False,
) -> None:
    """Start everything on this machine and keep it running until Ctrl-C.

    Needs nothing else installed: it uses SQLite unless EMBEDMILL_DATABASE_URL is set, and a Valkey of its own unless
    EMBEDMILL_REDIS_URL or EMBEDMILL_BROKER_URL is.
    """
    from cli.up import up as start

    raise typer.Exit(start(host=host, port=port, data_dir=data_dir, workers=workers, config=config, quiet=quiet))


@app.command(rich_help_panel=DAILY)
def embed(
    file: Annotated[Path, typer.Argument(help=".jsonl, .ndjson, .csv or .txt (each also .gz), or .parquet")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the server's only or built-in model.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .npy, .ndjson, .parquet or .arrow file. Default: FILE's name as .npy."),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Default: `text`, else the only column that holds strings.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="Default: `id`, where there is one.")] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Width of the vectors. Default: the model's own.")
    ] = None,
    input_type: Annotated[str | None, typer.Option(help="query, document, …; for models that tell them apart.")] = None,
    truncate: Annotated[
        Truncate | None, typer.Option(help="What to do with a text that is too long. Default: none.")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option(metavar="USD", help="Pause the job before it costs more. Default: no ceiling.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost and how long it would take, and embed nothing.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Embed a file of texts into a file of vectors: row i is the vector of record i.

    Examples:

    - `embedmill embed texts.jsonl`
    - `embedmill embed docs.csv --text-column body --id-column sku --out vectors.parquet`
    - `embedmill embed texts.jsonl --dry-run`, then `embedmill embed texts.jsonl --max-cost 2.50`

    A record that cannot be embedded keeps its row (NaN in .npy, null and an error elsewhere), and the exit code is 3.
    Ctrl-C leaves the job running and says how to come back to it.
    """
    from cli.client import connect
    from cli.embed import embed as embed_file

    with connect(url, api_key) as client:
        ended = embed_file(
            file,
            model=model,
            target=target,
            text_column=text_column,
            id_column=id_column,
            dimensions=dimensions,
            input_type=input_type,
            truncate=truncate.value if truncate else None,
            max_cost=max_cost,
            dry_run=dry_run,
            client=client,
        )
    raise typer.Exit(ended)


@app.command(rich_help_panel=DAILY)
def models(as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """List the models that the server offers to this key."""
    from cli.client import MODELS, connect
    from cli.model_list import print_models
    from cli.terminal import print_json

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(MODELS))
        else:
            print_models(client.models())


@app.command(rich_help_panel=OPERATIONS)
def doctor(
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    release: Annotated[
        str | None, typer.Option(metavar="ACCOUNT", help="Let an account serve again whose canary has changed.")
    ] = None,
) -> None:
    """Check this installation: each line says ok, warn or fail, and what to do."""
    from cli.doctor import doctor as examine

    raise typer.Exit(examine(url=url, api_key=api_key, as_json=as_json, release=release))


app.add_typer(processes.app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""

    def command() -> int:
        try:
            app(args=arguments, prog_name="embedmill")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else ExitCode.FAILED if end.code else ExitCode.DONE
        return ExitCode.DONE

    return exit_code_of(command)


def exit_code_of(command: Callable[[], int]) -> int:
    """What the command returns; an error becomes its code and one line on stderr, never a traceback."""
    try:
        return command()
    except CliError as error:
        _complain(str(error))
        return error.code
    except EmbedmillError as error:
        _complain(error.message)
        return ExitCode.FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return ExitCode.FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains while it ends
        return ExitCode.FAILED
    except Exception as error:  # the last net: a bug is one line too, unless somebody wants to see all of it
        if os.environ.get("EMBEDMILL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        said = " ".join(str(error).split()) or "no message"
        _complain(f"{type(error).__name__}: {said} (EMBEDMILL_LOG_LEVEL=DEBUG shows where)")
        return ExitCode.FAILED


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
