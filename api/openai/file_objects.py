"""OpenAI's objects of files and uploads, as callers see them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from engine.files.uploads import status_of


def file_object(row: Row[Any]) -> dict[str, Any]:
    """A file. Its status is `processed` from the start, as in OpenAI's live answers; both are deprecated there."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at),
        "expires_at": None if row.expires_at is None else int(row.expires_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


def upload_object(row: Row[Any], file: Row[Any] | None = None) -> dict[str, Any]:
    """An upload, with its file once it is complete."""
    return {
        "id": row.id,
        "object": "upload",
        "bytes": row.bytes,
        "created_at": int(row.created_at),
        "expires_at": int(row.expires_at),
        "filename": row.filename,
        "mime_type": row.mime_type,
        "purpose": row.purpose,
        "status": status_of(row),
        "file": None if file is None else file_object(file),
    }


def part_object(part_id: str, created_at: float, upload_id: str) -> dict[str, Any]:
    """A part of an upload."""
    return {"id": part_id, "object": "upload.part", "created_at": int(created_at), "upload_id": upload_id}
