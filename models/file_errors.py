"""Errors of requests about files, uploads and batches: a branch of the tree in models/errors.py."""

from __future__ import annotations

from models.errors import Conflict, RequestError


class FileNotFound(RequestError):
    """Unknown, deleted, expired and foreign files look the same. The message is OpenAI's, which has no code."""

    code = "file_not_found"
    kind = "File"

    def __init__(self, object_id: str) -> None:
        super().__init__(f"No such {self.kind} object: {object_id[:100]}", param="id")


class UploadNotFound(FileNotFound):
    """As FileNotFound, of an upload in parts."""

    code = "upload_not_found"
    kind = "Upload"


class FileRefused(RequestError):
    """A file whose name, or whose first line, its purpose does not allow."""


class RangeNotSatisfiable(RequestError):
    """The header Range names no byte of what has `size` bytes."""

    code = "range_not_satisfiable"
    size = 0


class BatchNotFound(RequestError):
    """Unknown, deleted and foreign batches look the same. The message begins with OpenAI's words."""

    code = "batch_not_found"

    def __init__(self, batch_id: str) -> None:
        super().__init__(
            f"No batch found with id '{batch_id[:100]}'. GET /v1/batches lists the batches of this key's project.",
            param="id",
        )


class BatchOutputDeleted(RequestError):
    """A file of an ended batch was deleted, or has expired."""

    code = "batch_output_deleted"


class BatchEnded(Conflict):
    """A cancel of a batch that has ended."""

    code = "batch_ended"  # not shown: OpenAI's answer has none
