"""`embedmill jobs …`: list, follow and control bulk jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.options import ApiKeyOption, JsonOption, LimitOption, UrlOption, YesOption, id_check

app = typer.Typer(help="Follow bulk jobs and fetch their results.", no_args_is_help=True)


JobId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The job's id, job_…", callback=id_check("job", "job_", "embedmill jobs list")),
]


@app.command("list")
def list_(
    limit: LimitOption = 20,
    status: Annotated[str | None, typer.Option(help="Only jobs in this status, e.g. in_progress.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """List jobs, newest first."""
    from cli.client.api_client import JOBS, connect
    from cli.output.progress import summary
    from cli.output.terminal import out, print_json, print_more, table, time_text

    with connect(url, api_key) as client:
        if as_json:
            print_json(client.json(JOBS, {"limit": limit, "status": status}))
            return
        page = client.jobs(limit=limit, status=status)
    rows = [
        [
            job.id,
            job.status,
            job.model or "several",
            time_text(job.created_at),
            summary(job),
        ]
        for job in page.data
    ]
    out.print(table("job", "status", "model", "created", "progress", rows=rows))
    print_more(page.has_more, limit)


@app.command()
def show(job_id: JobId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Print the job object as JSON."""
    from cli.client.api_client import JOBS, connect
    from cli.output.terminal import print_json

    with connect(url, api_key) as client:
        print_json(client.json(f"{JOBS}/{job_id}"))


@app.command()
def wait(job_id: JobId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Follow a job to its end, through a pause too. Exit code 0: all vectors; 3: some inputs failed; 1: it failed.

    Also 1 when it is paused because its budget is spent.
    """
    from cli.client.api_client import connect
    from cli.output.follow import follow_job, print_outcome
    from cli.output.progress import job_progress
    from cli.output.terminal import err

    with connect(url, api_key) as client, job_progress(err) as progress:
        job = follow_job(client, job_id, progress)
    print_outcome(job)
    raise typer.Exit(job.exit_code)


@app.command()
def results(
    job_id: JobId,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .npy, .ndjson, .parquet or .arrow file, or -. Default: ndjson to stdout."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="What there is of a job that runs, was cancelled or failed.")
    ] = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Fetch the vectors of a job: one row per input, in index order. Exit code 3: some rows have none.

    In a .npy file such a row is NaN; elsewhere it is null, or has an error.
    """
    from cli.client.api_client import connect
    from cli.files.save import check_complete, check_target, exit_code, missing_rows_text, save_results, write_ndjson
    from cli.output.progress import job_progress
    from cli.output.streams import data_stream
    from cli.output.terminal import err, tolerant_out

    if target == Path("-"):
        target = None
    if target is not None:
        check_target(target)
    with connect(url, api_key) as client:
        job = client.job(job_id)
        check_complete(job, partial=partial)
        if target is None:
            missing = write_ndjson(client, job, data_stream())
        else:
            rows = max(job.counts.total or 0, 1)
            with job_progress(err) as progress:
                missing = save_results(
                    client, job, target, lambda done: progress.saving(target.name, done / rows), partial=partial
                )
            tolerant_out.print(f"{job.counts.total:,} × {job.dimensions} → {target}", markup=False)
    if missing:
        err.print(missing_rows_text(job, missing), markup=False)
    raise typer.Exit(exit_code(missing))


@app.command()
def errors(job_id: JobId, as_json: JsonOption = False, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """List every input that has an error instead of a vector; on stderr, what has ended the whole job."""
    import msgspec

    from cli.client.api_client import connect
    from cli.client.types import InputErrorLine
    from cli.output.streams import data_stream
    from cli.output.terminal import err

    read = msgspec.json.Decoder(InputErrorLine).decode
    with connect(url, api_key) as client:
        for raw in client.errors(job_id):
            if as_json:
                data_stream().write(raw + b"\n")
                continue
            line = read(raw)
            name = f" {line.id}" if line.id else ""
            sys.stdout.write(f"{line.index}{name} {line.error.code}: {line.error.message}\n")
        for group in client.job(job_id).errors:
            if not group.count:
                err.print(f"the job has failed: {group.code}: {group.message}", markup=False)


@app.command()
def cancel(job_id: JobId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Stop a job. What is finished is kept and can be fetched."""
    from cli.client.api_client import connect
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        job = client.job_action(job_id, "cancel")
    out.print(f"{job.id} is {job.status}", markup=False)


@app.command()
def pause(job_id: JobId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Make no new calls for a job until it is resumed. What is finished is kept and can be fetched."""
    from cli.client.api_client import connect
    from cli.client.types import resume_hint
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        job = client.job_action(job_id, "pause")
    out.print(f"{job.id} is {job.status}: {resume_hint(job)}", markup=False)


@app.command()
def resume(
    job_id: JobId,
    max_cost: Annotated[
        str | None,
        typer.Option("--max-cost", metavar="USD", help="A new ceiling for the whole job, what is spent included."),
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Let a paused job go on. With --max-cost, also change the ceiling of one that runs."""
    from cli.client.api_client import connect
    from cli.client.types import resume_effect
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        before = client.job(job_id)
        job = client.job_action(job_id, "resume", {"max_cost_usd": max_cost})
    out.print(f"{job.id} is {job.status}{resume_effect(before, job)}", markup=False)


@app.command()
def retry(job_id: JobId, url: UrlOption = None, api_key: ApiKeyOption = None) -> None:
    """Try the failed inputs of a finished job again, into the same job. Its vectors stay, and nothing is paid twice."""
    from cli.client.api_client import connect
    from cli.output.progress import summary
    from cli.output.terminal import out

    with connect(url, api_key) as client:
        job = client.job_action(job_id, "retry")
    out.print(f"{job.id} is {job.status}: {summary(job)}", markup=False)


@app.command()
def delete(
    job_id: JobId,
    yes: YesOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Remove a job and its results; one that runs is cancelled first."""
    from cli.client.api_client import connect
    from cli.output.terminal import confirm, out

    if not yes:
        confirm(f"Remove {job_id} and its results for good?")
    with connect(url, api_key) as client:
        client.delete(job_id)
    out.print(f"{job_id} is removed", markup=False)
