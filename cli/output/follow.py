"""Follows a job to its end, and prints how it ended."""

from __future__ import annotations

from cli.client.api_client import Client
from cli.client.types import Job, resume_hint, status_text
from cli.errors import CliError, Failure
from cli.output.progress import JobProgress, summary
from cli.output.terminal import duration, err

SHOWN_ERRORS = 3


def follow_job(client: Client, job_id: str, progress: JobProgress) -> Job:
    """Wait until the job is finished, through pauses too. Ctrl-C leaves it as it is and says how to come back to it."""
    job: Job | None = None
    try:
        for job in client.changes(job_id):
            progress.working(job)
            if job.status == "paused" and job.waiting_on == "budget":
                raise CliError(
                    f"{job_id} is paused: going on could cost more than its ceiling",
                    f"raise it with `embedmill jobs resume {job_id} --max-cost USD`; what is done is kept",
                    failure=Failure.JOB,
                )
    except KeyboardInterrupt:
        if job is not None and job.status == "paused":
            message = f"interrupted; {job_id} is {status_text(job)}"
            raise CliError(message, resume_hint(job), failure=Failure.INTERRUPTED) from None
        raise CliError(
            f"interrupted; {job_id} goes on without this command",
            f"follow it with `embedmill jobs wait {job_id}`, then `embedmill jobs results {job_id} --out FILE`; "
            f"stop it with `embedmill jobs cancel {job_id}`",
            failure=Failure.INTERRUPTED,
        ) from None
    assert job is not None  # changes() yields at least once
    return job


def print_outcome(job: Job) -> None:
    """Print on stderr how a job ended, and where its errors are listed."""
    duration_text = ""
    if job.finished_at and job.created_at and job.finished_at > job.created_at:  # whole seconds: below one says nothing
        duration_text = f" in {duration(job.finished_at - job.created_at)}"
    err.print(f"{job.id} {job.status.replace('_', ' ')}{duration_text}: {summary(job)}", markup=False)
    for group in job.errors[:SHOWN_ERRORS]:
        example = f", first at index {group.example_index:,}" if group.example_index is not None else ""
        count = f"{group.count:,} × " if group.count else ""  # 0: what ended the job, not an input
        err.print(f"  {count}{group.code}{example}: {group.message}", markup=False)
    if job.truncated:
        err.print(f"  {job.truncated:,} inputs were cut: their vectors are of their beginnings", markup=False)
    if job.counts.failed:
        err.print(f"  all of them: embedmill jobs errors {job.id}", markup=False)
