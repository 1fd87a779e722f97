"""The actions that each job status allows, and the error for all others."""

from __future__ import annotations

from models.errors import Conflict, JobNotFound
from models.job import JobStatus

# By status: the actions that change the job, and advice for the error message.
ALLOWED_ACTIONS: dict[JobStatus, tuple[tuple[str, ...], str]] = {
    JobStatus.VALIDATING: (("cancel", "delete"), "its corpus is still arriving: poll it until it is in_progress"),
    JobStatus.IN_PROGRESS: (("pause", "cancel", "delete"), "poll it until it has ended"),
    JobStatus.PAUSED: (("resume", "cancel", "delete"), "resume it, and it goes on"),
    JobStatus.COMPLETED: (("delete",), "it has ended, and its results can be read"),
    JobStatus.COMPLETED_WITH_ERRORS: (("retry", "delete"), "it has ended: its results and its errors can be read"),
    JobStatus.FAILED: (("retry", "delete"), "it has ended: its errors say why"),
    JobStatus.CANCELLING: (("delete",), "poll it until it is cancelled; what is done can be read"),
    JobStatus.CANCELLED: (("delete",), "what was done can be read; send the rest as a new job"),
    JobStatus.EXPIRED: (("delete",), "what was done can be read; send the rest as a new job"),
}


def action_conflict(verb: str, status: str) -> Conflict:
    """The error for an action that the job's status does not allow."""
    verbs, advice = ALLOWED_ACTIONS[JobStatus(status)]
    return Conflict(
        f"Cannot {verb} a job with status '{status}': {advice}. Possible with this status: {', '.join(verbs)}."
    )


def job_not_found() -> JobNotFound:
    """The same error for another project's, an unknown and a malformed id."""
    return JobNotFound(
        "No job found with this id. GET /v1/embeddings/jobs lists the jobs of this key's project; "
        "a job is removed some days after it has ended.",
        param="id",
    )
