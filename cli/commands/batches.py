"""`embedmill batches …`: files of requests in OpenAI's form, run as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, LimitOption, UrlOption, id_check

app = typer.Typer(help="Run files of requests in OpenAI's batch form.", no_args_is_help=True)

BatchId = Annotated[
    str,
    typer.Argument(metavar="ID", help="batch_…", callback=id_check("batch", "batch_", "embedmill batches list")),
]


@app.command()
def create(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .jsonl file of requests, or the id of one, file-….")],
    completion_window: Annotated[
        str, typer.Option(metavar="TIME", help="Stop it after this time, e.g. 90m or 24h. What is done is kept.")
    ] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="A note of yours; repeatable.")
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Run the good lines where some are bad. Default: a bad line fails it.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Follow it, then fetch its files into this folder."),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Start a batch and print its id.

    Examples:

    - `embedmill batches create requests.jsonl --out results/`
    - `embedmill batches create file-… --completion-window 2h --metadata team=search`

    With --wait or --out, exit code 0: every request has its answer; 3: some failed; 1: the batch did.
    """
    from cli.client.api_client import connect
    from cli.commands.batch_run import BatchRequest, create_batch

    request = BatchRequest(
        file=file,
        completion_window=completion_window,
        metadata=metadata or [],
        lenient=lenient,
        wait=wait or target is not None,
        target=target,
    )
    with connect(url, api_key) as client:
        exit_code = create_batch(request, client)
    raise typer.Exit(exit_code)


@app.command("list")
def list_(
    limit: LimitOption = 20, as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None
) -> None:
    """List batches, newest first."""
    from cli.client.api_client import connect
    from cli.client.batches_client import BATCHES, Batches
    from cli.output.follow_batch import batch_summary
    from cli.output.terminal import out, print_json, print_more, table, time_text

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(BATCHES, {"limit": limit}))
            return
        page = Batches(client).page(limit=limit)
    rows = [
        [
            batch.id,
            batch.status,
            time_text(batch.created_at),
            batch_summary(batch),
            batch.input_file_id or "",
        ]
        for batch in page.data
    ]
    out.print(table("batch", "status", "created", "progress", "input file", rows=rows))
    print_more(page.has_more, limit)


@app.command()
def show(batch_id: BatchId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Print the batch object as JSON."""
    from cli.client.api_client import connect
    from cli.client.batches_client import BATCHES
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        print_json(client.json(f"{BATCHES}/{batch_id}"))


@app.command()
def wait(batch_id: BatchId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Follow a batch to its end. Exit code 0: every request has its answer; 3: some failed; 1: the batch did."""
    from cli.client.api_client import connect
    from cli.client.batches_client import Batches
    from cli.output.amounts import amount_progress
    from cli.output.follow_batch import follow_batch, print_batch_outcome
    from cli.output.terminal import err

    with connect(url, api_key) as client, amount_progress(err) as progress:
        batch = follow_batch(Batches(client), batch_id, progress)
    print_batch_outcome(batch)
    raise typer.Exit(batch.exit_code)


@app.command()
def cancel(batch_id: BatchId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Stop a batch. What is finished is kept and can be fetched."""
    from cli.client.api_client import connect
    from cli.client.batches_client import Batches
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        batch = Batches(client).cancel(batch_id)
    out.print(f"{batch.id} is {batch.status}", markup=False)


@app.command()
def download(
    batch_id: BatchId,
    target: Annotated[Path | None, typer.Option("--out", "-o", help="A file for the answers. Default: stdout.")] = None,
    errors: Annotated[
        Path | None, typer.Option("--errors", help="A file for the requests that failed, or - for stdout.")
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Fetch the answers of a batch that has ended, in the order of its input. Exit code 3: some requests failed."""
    from cli.client.api_client import connect
    from cli.commands.batch_run import download_batch

    with connect(url, api_key) as client:
        exit_code = download_batch(client, batch_id, target, errors)
    raise typer.Exit(exit_code)
