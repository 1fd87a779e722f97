"""The command `embedmill`. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import jobs, keys, processes, providers
from cli.errors import CODES, CliError, ExitCode, Failure
from cli.options import ApiKeyOption, JsonOption, UrlOption
from cli.streams import let_go, prepare_streams
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
app.add_typer(providers.app, name="providers", rich_help_panel=OPERATIONS)


def _print_version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        print(f"embedmill {importlib.metadata.version('embedmill')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What comes before a command."""


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
    file: Annotated[
        Path,
        typer.Argument(
            help=".jsonl, .ndjson, .json, .csv, .tsv or .txt (each also .gz or .zst), or .parquet; - is stdin"
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Default: the server's only one; with several it must be named.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .npy, .ndjson, .parquet or .arrow file, or - (ndjson). Default: FILE's name as .npy."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(metavar="FORMAT", help="jsonl, csv, tsv, txt or parquet. Default: by FILE's ending, or content."),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of the text, e.g. cp1252. Default: UTF-8, or UTF-16 and UTF-32 where it can be told."),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Between columns of a CSV file: one character, or tab. Default: found.")
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
    new: Annotated[
        bool, typer.Option("--new", help="Start another job, where this file was sent with these options before.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Embed a file of texts into a file of vectors: row i is the vector of record i.

    Examples:

    - `embedmill embed texts.jsonl`
    - `embedmill embed docs.csv --text-column body --id-column sku --out vectors.parquet`
    - `embedmill embed texts.jsonl --dry-run`, then `embedmill embed texts.jsonl --max-cost 2.50`
    - `zcat texts.txt.gz | embedmill embed - --format txt --out - > vectors.ndjson`

    A record that cannot be embedded keeps its row (NaN in .npy, null and an error elsewhere), and the exit code is 3.
    A file that cannot be read for certain is refused before anything is spent.
    Ctrl-C leaves the job running; the same command comes back to it.
    """
    from cli.client import connect
    from cli.embed import EmbedRequest
    from cli.embed import embed as embed_file

    with connect(url, api_key) as client:
        request = EmbedRequest(
            file=file,
            model=model,
            target=target,
            text_column=text_column,
            id_column=id_column,
            format=format,
            encoding=encoding,
            delimiter=delimiter,
            dimensions=dimensions,
            input_type=input_type,
            truncate=truncate.value if truncate else None,
            max_cost=max_cost,
            dry_run=dry_run,
            new=new,
        )
        ended = embed_file(request, client)
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
    providers: Annotated[
        bool, typer.Option("--providers", help="Try each account with one small call, which its provider may bill.")
    ] = False,
) -> None:
    """Check this installation: each line says ok, warn or fail, and what to do."""
    from cli.doctor import doctor as examine

    raise typer.Exit(examine(url=url, api_key=api_key, as_json=as_json, release=release, providers=providers))


app.add_typer(processes.app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""

    def command() -> int:
        try:
            app(args=arguments, prog_name="embedmill")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else ExitCode.FAILED if end.code else ExitCode.DONE
        return ExitCode.DONE

    prepare_streams()
    code = exit_code_of(command)
    try:
        sys.stdout.flush()
    except OSError as error:  # what is lost now was asked for
        if code == ExitCode.DONE and not isinstance(error, BrokenPipeError):
            _complain(f"stdout cannot be written: {error.strerror}")
        let_go("stdout")
        return code or ExitCode.FAILED
    return code


def exit_code_of(command: Callable[[], int]) -> int:
    """What the command returns; an error becomes its code and one line on stderr, never a traceback."""
    try:
        return command()
    except CliError as error:
        _complain(str(error))
        return error.code
    except EmbedmillError as error:
        advice = getattr(error, "advice", "")
        _complain(str(CliError(error.message, advice or None)))
        return CODES[Failure.CONFIGURATION]
    except KeyboardInterrupt:
        _complain("interrupted")
        return CODES[Failure.INTERRUPTED]
    except BrokenPipeError:
        let_go("stdout")
        return CODES[Failure.INTERRUPTED]
    except Exception as error:  # the last net: a bug is one line too, unless somebody wants to see all of it
        if os.environ.get("EMBEDMILL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        from cli.causes import explain
        from engine.validation import redacted  # of a library's text: it may quote a header or a URL

        explained = explain(error)
        _complain(redacted(str(explained)))
        return explained.code


def _complain(message: str) -> None:
    try:
        print(f"error: {without_keys(message)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        let_go("stderr")


def without_keys(message: str) -> str:
    """The message without what looks like a key: other people's libraries quote headers."""
    return re.sub(r"(?i)\b(em_[0-9a-z]+_|bearer )[^\s'\"]+", r"\1…", message)


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
