"""`embedmill files …`: send, list, fetch, remove and check files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, LimitOption, UrlOption, YesOption, id_check, seconds_of

app = typer.Typer(help="Send files for batches and jobs, fetch results, check a batch file.", no_args_is_help=True)


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    USER_DATA = "user_data"


FileId = Annotated[
    str,
    typer.Argument(metavar="ID", help="file-…", callback=id_check("file", "file-", "embedmill files list")),
]


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(help="A .jsonl file of requests, or with user_data any corpus of a job.")],
    purpose: Annotated[
        Purpose, typer.Option(help="batch: requests of a batch. user_data: a corpus that a job reads.")
    ] = Purpose.BATCH,
    expires_after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Remove it so long after now, e.g. 24h or 7d.")
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Send a file and print its id. A large one goes in parts, so that a connection that breaks costs one of them."""
    import msgspec

    from cli.client.api_client import connect
    from cli.client.files_client import Files
    from cli.commands.file_transfer import check_upload, upload_file
    from cli.output.amounts import amount_progress, bytes_text
    from cli.output.terminal import err, out, print_json

    expires_after_s = seconds_of(expires_after)
    check_upload(file, purpose)
    with connect(url, api_key) as client, amount_progress(err) as progress:
        stored = upload_file(Files(client), file, purpose, expires_after_s, progress)
    if as_json:
        print_json(msgspec.json.encode(stored))
        return
    err.print(f"{file.name}, {bytes_text(stored.bytes)}, for {stored.purpose}:", markup=False)
    out.print(stored.id, markup=False)


@app.command("list")
def list_(
    limit: LimitOption = 20,
    purpose: Annotated[str | None, typer.Option(help="Only files for this, e.g. batch_output.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """List files, newest first."""
    from cli.client.api_client import connect
    from cli.client.files_client import FILES, Files
    from cli.output.amounts import bytes_text
    from cli.output.terminal import out, print_json, print_more, table, time_text

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(FILES, {"limit": limit, "purpose": purpose}))
            return
        page = Files(client).page(limit=limit, purpose=purpose)
    rows = [
        [
            each.id,
            each.purpose,
            bytes_text(each.bytes),
            time_text(each.created_at),
            time_text(each.expires_at),
            each.filename,
        ]
        for each in page.data
    ]
    out.print(table("file", "purpose", "size", "created", "expires", "name", rows=rows, right=("size",)))
    print_more(page.has_more, limit)


@app.command()
def show(file_id: FileId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Print the file object as JSON."""
    from cli.client.api_client import connect
    from cli.client.files_client import FILES
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        print_json(client.json(f"{FILES}/{file_id}"))


@app.command()
def download(
    file_id: FileId,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help="A file, which appears whole or not at all. Default: stdout.")
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Fetch the bytes of a file. After a break it goes on where it was."""
    from cli.client.api_client import connect
    from cli.client.files_client import Files
    from cli.commands.file_transfer import download_file
    from cli.files.save import check_writable
    from cli.output.amounts import amount_progress, bytes_text
    from cli.output.terminal import err

    if target == Path("-"):
        target = None
    if target is not None:
        check_writable(target)
    with connect(url, api_key) as client, amount_progress(err) as progress:
        files = Files(client)
        file = files.get(file_id)
        download_file(files, file, target, progress)
    if target is not None:
        err.print(f"{bytes_text(file.bytes)} → {target}", markup=False)


@app.command()
def delete(file_id: FileId, yes: YesOption = False, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Remove a file."""
    from cli.client.api_client import connect
    from cli.client.files_client import Files
    from cli.output.terminal import confirm, out

    if not yes:
        confirm(f"Remove {file_id} for good?")
    with connect(url, api_key) as client:
        Files(client).delete(file_id)
    out.print(f"{file_id} is removed", markup=False)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(help="A .jsonl file of requests.")],
    limit: Annotated[int, typer.Option(min=0, help="How many bad lines are listed; all are counted.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """Check a batch file before it is sent, without a server. Exit code 3: some lines are bad.

    Whether a model exists, and a text fits it, only the server knows.
    """
    from cli.commands.file_transfer import check_upload
    from cli.commands.validate_report import print_report

    check_upload(file, Purpose.BATCH)
    raise typer.Exit(print_report(file, limit=limit, as_json=as_json))
