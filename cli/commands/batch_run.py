"""Starts a batch from a file, follows it, and fetches its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.client.api_client import Client
from cli.client.batches_client import Batches
from cli.client.files_client import Files
from cli.commands.file_transfer import check_upload, download_file, upload_file
from cli.errors import CODES, CliError, ExitCode, Failure, NotFound, UsageError
from cli.files.save import check_writable
from cli.output.amounts import amount_progress, bytes_text
from cli.output.follow_batch import follow_batch, print_batch_outcome
from cli.output.terminal import err, out

STDOUT = Path("-")
FILE_ID = re.compile(r"file-[A-Za-z0-9_-]+")
LENIENT = {"embedmill_validation": "lenient"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """The options of the command line. `file`: a path, or the id of a file on the server."""

    file: str
    completion_window: str = "24h"
    metadata: Sequence[str] = ()
    lenient: bool = False
    wait: bool = False
    target: Path | None = None


def create_batch(request: BatchRequest, client: Client) -> ExitCode:
    """Start a batch and print its id; wait for it and fetch its files, where that was requested."""
    metadata = parse_metadata(request.metadata) | (LENIENT if request.lenient else {})
    if request.target is not None:
        _make_folder(request.target)
    file_id = _input_file(request.file, client)
    batches = Batches(client)
    try:
        batch = batches.create(file_id, request.completion_window, metadata)
    except CliError:
        if file_id != request.file:
            err.print(f"{file_id} is there: `embedmill batches create {file_id}` needs no second upload", markup=False)
        raise
    out.print(batch.id, markup=False)
    if not request.wait:
        err.print(f"{batch.status}: `embedmill batches wait {batch.id}` follows it", markup=False)
        return ExitCode.DONE
    with amount_progress(err) as progress:
        batch = follow_batch(batches, batch.id, progress)
    print_batch_outcome(batch)
    if request.target is not None:
        for result_id, name in ((batch.output_file_id, "output"), (batch.error_file_id, "error")):
            if result_id:
                _fetch(client, result_id, request.target / f"{batch.id}_{name}.jsonl")
    return batch.exit_code


def download_batch(client: Client, batch_id: str, target: Path | None, errors: Path | None) -> ExitCode:
    """Write the output file, and the error file where it is named. Raises CliError for a batch that has not ended."""
    for path in (target, errors):
        if path is not None and path != STDOUT:
            check_writable(path)
    batch = Batches(client).get(batch_id)
    if not batch.ended:
        raise CliError(f"{batch_id} is {batch.status.replace('_', ' ')}", f"`embedmill batches wait {batch_id}` first")
    if batch.status == "failed":
        print_batch_outcome(batch)
        raise CliError(f"{batch_id} has failed, and nothing has run", "correct its input file", failure=Failure.JOB)
    if batch.output_file_id:
        _fetch(client, batch.output_file_id, target)
    else:
        err.print(f"{batch_id} has no answers: every request failed", markup=False)
    if errors is not None and batch.error_file_id:
        _fetch(client, batch.error_file_id, errors)
    if batch.counts.failed:
        hint = "" if errors is not None else ": --errors FILE fetches them"
        err.print(f"{batch.counts.failed:,} of {batch.counts.total:,} requests failed{hint}", markup=False)
    return CODES[Failure.INPUT_ERRORS] if batch.counts.failed or batch.error_file_id else ExitCode.DONE


def parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """`key=value` each. Raises UsageError."""
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{pair!r} is no metadata", "write --metadata KEY=VALUE")
        if key in metadata:
            raise UsageError(f"the metadata {key!r} is there twice", "give each key once")
        metadata[key] = value
    return metadata


def _input_file(file: str, client: Client) -> str:
    """The id of the input file: a path is sent first. A file of that name wins over an id."""
    path = Path(file)
    if not path.exists() and FILE_ID.fullmatch(file):
        return file
    if not path.exists():
        raise NotFound(f"{file} does not exist, and is no file's id", "is its name right?")
    check_upload(path, "batch")
    with amount_progress(err) as progress:
        stored = upload_file(Files(client), path, "batch", None, progress)
    err.print(f"{path.name}, {bytes_text(stored.bytes)}: {stored.id}", markup=False)
    return stored.id


def _make_folder(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a folder", "the files of a batch go into a folder: name another")
    try:
        path.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path} cannot be made: there is no folder {path.parent}") from error


def _fetch(client: Client, file_id: str, target: Path | None) -> None:
    files = Files(client)
    with amount_progress(err) as progress:
        file = files.get(file_id)
        download_file(files, file, None if target == STDOUT else target, progress)
    if target is not None and target != STDOUT:
        err.print(f"{bytes_text(file.bytes)} → {target}", markup=False)
