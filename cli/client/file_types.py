"""Files, uploads and batches as the command line reads them."""

from __future__ import annotations

import msgspec

from cli.errors import CODES, ExitCode, Failure

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class StoredFile(msgspec.Struct):
    """A file on the server. `bytes`: its size."""

    id: str
    bytes: int
    filename: str = ""
    purpose: str = ""
    created_at: float | None = None
    expires_at: float | None = None


class FilePage(msgspec.Struct):
    """A page of files."""

    data: list[StoredFile]
    has_more: bool = False


class Upload(msgspec.Struct):
    """A file that arrives in parts. `file`: once it is complete."""

    id: str
    file: StoredFile | None = None


class UploadPart(msgspec.Struct):
    """A part of an upload."""

    id: str


class RequestCounts(msgspec.Struct):
    """How many lines of a batch are where."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class LineError(msgspec.Struct):
    """What is wrong with a line of a batch's input file, or with the file as a whole (`line` None)."""

    message: str = ""
    code: str | None = None
    line: int | None = None


class LineErrors(msgspec.Struct):
    """The errors of a batch's input file."""

    data: list[LineError] = []


class Batch(msgspec.Struct):
    """A batch. `error_count`: how many bad lines there are, where `errors` lists the first ones only."""

    id: str
    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: LineErrors | None = None
    error_count: int | None = None
    request_counts: RequestCounts | None = None
    created_at: float | None = None
    job_id: str | None = None

    @property
    def counts(self) -> RequestCounts:
        """The counts; zeros where the server sends none."""
        return self.request_counts or RequestCounts()

    @property
    def ended(self) -> bool:
        """True once the status changes no more by itself."""
        return self.status in ENDED

    @property
    def exit_code(self) -> ExitCode:
        """How a command that waited for this batch ends."""
        if self.status != "completed":
            return CODES[Failure.JOB]
        return CODES[Failure.INPUT_ERRORS] if self.counts.failed else ExitCode.DONE


class BatchPage(msgspec.Struct):
    """A page of batches."""

    data: list[Batch]
    has_more: bool = False
