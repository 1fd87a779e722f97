"""The routes of files and uploads, and their part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from api.http.file_schemas import (
    CompleteUploadRequest,
    DeletedFile,
    FileList,
    FileObject,
    UploadObject,
    UploadPart,
    UploadRequest,
)
from api.http.openapi import IDEMPOTENCY_KEY, JSON, json_body, operation, path_param, query_param
from api.http.route_spec import RouteSpec
from api.openai import file_content, files, uploads

FILES, UPLOADS = "/v1/files", "/v1/uploads"
ONE_FILE, ONE_UPLOAD = f"{FILES}/{{file_id}}", f"{UPLOADS}/{{upload_id}}"
FILE_ID = path_param("file_id", "Id of the file")
UPLOAD_ID = path_param("upload_id", "Id of the upload")


def all_routes() -> Iterator[RouteSpec]:
    """Every route of files and uploads."""
    yield from _files()
    yield from _uploads()


def _files() -> Iterator[RouteSpec]:
    create = {"requestBody": _form("file", "purpose", *files.FIELDS[1:3]), "parameters": [IDEMPOTENCY_KEY]}
    yield RouteSpec("POST", FILES, files.create_file, operation("Store a file", "Files", 200, FileObject, create))
    page = [
        query_param("limit", "1 to 10,000"),
        query_param("after", "Id of the last file seen"),
        query_param("order", "desc (newest first) or asc"),
        query_param("purpose", ""),
    ]
    yield RouteSpec(
        "GET", FILES, files.list_files, operation("List files", "Files", 200, FileList, {"parameters": page})
    )
    one = {"parameters": [FILE_ID]}
    yield RouteSpec("GET", ONE_FILE, files.get_file, operation("One file", "Files", 200, FileObject, one))
    yield RouteSpec("DELETE", ONE_FILE, files.delete_file, operation("Remove a file", "Files", 200, DeletedFile, one))
    ranged = {"name": "Range", "in": "header", "required": False, "schema": {"type": "string"}}
    yield RouteSpec(
        "GET",
        f"{ONE_FILE}/content",
        file_content.get_file_content,
        operation("The bytes of a file, or a range of them", "Files", extra={"parameters": [FILE_ID, ranged]}),
    )


def _uploads() -> Iterator[RouteSpec]:
    create = {"requestBody": json_body({JSON: UploadRequest}), "parameters": [IDEMPOTENCY_KEY]}
    yield RouteSpec(
        "POST",
        UPLOADS,
        uploads.create_upload,
        operation("Begin a file that arrives in parts", "Uploads", 200, UploadObject, create),
    )
    yield RouteSpec(
        "POST",
        f"{ONE_UPLOAD}/parts",
        uploads.add_upload_part,
        operation(
            "Store a part, of 64 MiB at the most, beside others",
            "Uploads",
            200,
            UploadPart,
            {"requestBody": _form("data"), "parameters": [UPLOAD_ID]},
        ),
    )
    complete = {"requestBody": json_body({JSON: CompleteUploadRequest}), "parameters": [UPLOAD_ID]}
    yield RouteSpec(
        "POST",
        f"{ONE_UPLOAD}/complete",
        uploads.complete_upload,
        operation("Make a file of the parts, in the order named", "Uploads", 200, UploadObject, complete),
    )
    yield RouteSpec(
        "POST",
        f"{ONE_UPLOAD}/cancel",
        uploads.cancel_upload,
        operation("Cancel an upload", "Uploads", 200, UploadObject, {"parameters": [UPLOAD_ID]}),
    )


def _form(file_field: str, *fields: str) -> dict[str, Any]:
    """The body of a form with a file."""
    properties: dict[str, Any] = {file_field: {"type": "string", "format": "binary"}}
    properties |= {name: {"type": "string"} for name in fields}
    schema = {"type": "object", "properties": properties, "required": [file_field, *fields[:1]]}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
