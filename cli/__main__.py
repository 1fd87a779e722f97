"""The command `embedmill`. Commands import what they need when they run, so that --help is quick."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from cli.commands import batches, files, jobs, keys, models, processes, providers, webhooks
from cli.commands.doctor.command import doctor
from cli.commands.embed import embed
from cli.commands.stream import stream
from cli.commands.up import up
from cli.errors import CODES, CliError, ExitCode, Failure
from cli.output.streams import discard_output, prepare_streams
from cli.redaction import redact_keys
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
# In the order of the help.
app.command(rich_help_panel=DAILY)(up)
app.command(rich_help_panel=DAILY)(embed)
app.command(rich_help_panel=DAILY)(stream)
app.add_typer(models.app, name="models", rich_help_panel=DAILY)
app.command(rich_help_panel=OPERATIONS)(doctor)
app.add_typer(processes.app)
app.add_typer(jobs.app, name="jobs", rich_help_panel=DAILY)
app.add_typer(files.app, name="files", rich_help_panel=DAILY)
app.add_typer(batches.app, name="batches", rich_help_panel=DAILY)
app.add_typer(webhooks.app, name="webhooks", rich_help_panel=DAILY)
app.add_typer(keys.app, name="keys", rich_help_panel=OPERATIONS)
app.add_typer(providers.app, name="providers", rich_help_panel=OPERATIONS)


def _print_version(is_requested: bool) -> None:
    if is_requested:
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
    except OSError as error:  # the requested output is lost
        if code == ExitCode.DONE and not isinstance(error, BrokenPipeError):
            _print_error(f"stdout cannot be written: {error.strerror}")
        discard_output("stdout")
        return code or ExitCode.FAILED
    return code


def exit_code_of(command: Callable[[], int]) -> int:
    """The exit code of the command; an error becomes its code and one line on stderr, never a traceback."""
    try:
        return command()
    except CliError as error:
        _print_error(str(error))
        return error.code
    except EmbedmillError as error:
        advice = getattr(error, "advice", "")
        _print_error(str(CliError(error.message, advice or None)))
        return CODES[Failure.CONFIGURATION]
    except KeyboardInterrupt:
        _print_error("interrupted")
        return CODES[Failure.INTERRUPTED]
    except BrokenPipeError:
        discard_output("stdout")
        return CODES[Failure.INTERRUPTED]
    except Exception as error:  # the edge: a bug is one line too, unless the log level is DEBUG
        if os.environ.get("EMBEDMILL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        from cli.error_messages import explain
        from engine.config_checks import redacted  # of a library's text: it may quote a header or a URL

        explained = explain(error)
        _print_error(redacted(str(explained)))
        return explained.code


def _print_error(message: str) -> None:
    try:
        print(f"error: {redact_keys(message)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard_output("stderr")


def main() -> None:
    """The entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
