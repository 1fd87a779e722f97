"""Wire models of files and uploads: what clients send, and what the OpenAPI document shows of what they get."""

from __future__ import annotations

from typing import Annotated

import msgspec


class ExpiresAfter(msgspec.Struct, forbid_unknown_fields=True):
    """When a file expires: so many seconds after its creation."""

    anchor: str
    seconds: int


class UploadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/uploads."""

    bytes: Annotated[int, msgspec.Meta(ge=1)]
    filename: str
    mime_type: Annotated[str, msgspec.Meta(max_length=255)]
    purpose: str
    expires_after: ExpiresAfter | None = None


class CompleteUploadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/uploads/{upload_id}/complete."""

    part_ids: Annotated[list[str], msgspec.Meta(max_length=10_000)]
    md5: str | None = None


class FileObject(msgspec.Struct):
    """A file."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


class FileList(msgspec.Struct):
    """A page of files."""

    object: str
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(msgspec.Struct):
    """The answer to the removal of a file."""

    id: str
    object: str
    deleted: bool


class UploadObject(msgspec.Struct):
    """A file that arrives in parts."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    mime_type: str
    purpose: str
    status: str
    file: FileObject | None


class UploadPart(msgspec.Struct):
    """A part of an upload."""

    id: str
    object: str
    created_at: int
    upload_id: str


DOCUMENTED = (FileObject, FileList, DeletedFile, UploadRequest, CompleteUploadRequest, UploadObject, UploadPart)
