"""POST /v1/uploads and what belongs to it: a file that arrives in parts."""

from __future__ import annotations

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.http import params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.file_schemas import CompleteUploadRequest, UploadRequest
from api.http.idempotency import REPLAYED, created_before, reserved_key
from api.http.json_response import json_response
from api.http.multipart import FORM_BYTES, FormReader, stated_bytes
from api.openai.file_objects import part_object, upload_object
from engine.embedding.body_errors import decode
from engine.files import idempotency, purposes, uploads
from engine.files.complete_upload import complete_upload as make_file
from engine.files.composition import files_of
from engine.files.idempotency import KeyReplay
from engine.files.read import get_file
from engine.files.uploads import MAX_PART_BYTES, UploadSpec
from models.base import new_id
from models.errors import InvalidInput
from models.file_errors import FileNotFound

MAX_BODY_BYTES = 64 * 1024
MAX_COMPLETE_BYTES = 1024 * 1024  # 10,000 ids of parts


_UPLOAD = msgspec.json.Decoder(UploadRequest)
_COMPLETE = msgspec.json.Decoder(CompleteUploadRequest)


async def create_upload(request: Request) -> Response:
    """Create a pending upload."""
    params.reject_unknown_params(request)
    runtime, caller = runtime_of(request), caller_of(request)
    store = files_of(runtime)
    body = await request_body.read_body(request, MAX_BODY_BYTES)
    spec = _spec(decode(_UPLOAD, body), runtime.settings.max_file_bytes)
    fingerprint = idempotency.fingerprint_of("upload", body)
    async with reserved_key(request, lambda: new_id("upload")) as reserved:
        upload_id = await created_before(request, reserved, fingerprint)
        headers = REPLAYED
        if upload_id is None and not isinstance(reserved, KeyReplay):
            upload_id, headers = reserved.new_id, {}
            async with store.database.write() as connection:
                await uploads.create_upload(
                    connection, spec, upload_id=upload_id, project=caller.project, key_id=caller.key_id
                )
                await idempotency.finish_key(connection, store, reserved, fingerprint)
        return await _upload_response(request, upload_id or "", headers)


def _spec(body: UploadRequest, max_bytes: int) -> UploadSpec:
    purpose = purposes.check_purpose(body.purpose)
    filename = purposes.check_name(body.filename, param="filename")
    purposes.check_suffix(purpose, filename)
    if body.bytes > max_bytes:
        raise InvalidInput(
            f"Invalid 'bytes': a file may have {max_bytes} bytes at the most.", param="bytes", code="invalid_value"
        )
    expires = body.expires_after
    return UploadSpec(
        purpose=purpose,
        filename=filename,
        mime_type=purposes.storable(body.mime_type),
        bytes=body.bytes,
        file_expires_after_s=None if expires is None else purposes.check_expiry(expires.anchor, expires.seconds),
    )


async def add_upload_part(request: Request) -> Response:
    """Store one part."""
    params.reject_unknown_params(request)
    runtime, project = runtime_of(request), caller_of(request).project
    store, upload_id = files_of(runtime), request.path_params["upload_id"]
    upload = await uploads.get_upload(store, project, upload_id)
    uploads.check_pending(upload)
    uploads.check_part(stated_bytes(request) - FORM_BYTES, upload.bytes)  # before a byte of it is read
    form = FormReader(request, file_field="data", max_bytes=MAX_PART_BYTES)

    async def finish() -> None:
        await form.finish()
        await runtime.keys.recheck(caller_of(request))

    with request_body.body_lease(request) as lease:
        await lease.resize(runtime.objects.buffer_bytes)
        await form.open_file()
        part_id, created_at = await uploads.add_part(store, project, upload_id, form.file_chunks(), finish)
    return json_response(part_object(part_id, created_at, upload_id))


async def complete_upload(request: Request) -> Response:
    """Make a file of the parts."""
    params.reject_unknown_params(request)
    runtime, caller = runtime_of(request), caller_of(request)
    body = decode(_COMPLETE, await request_body.read_body(request, MAX_COMPLETE_BYTES))
    upload_id = request.path_params["upload_id"]
    await make_file(
        files_of(runtime),
        runtime.work,
        project=caller.project,
        key_id=caller.key_id,
        upload_id=upload_id,
        part_ids=body.part_ids,
        md5=body.md5,
    )
    return await _upload_response(request, upload_id)


async def cancel_upload(request: Request) -> Response:
    """Cancel a pending upload."""
    params.reject_unknown_params(request)
    store, upload_id = files_of(runtime_of(request)), request.path_params["upload_id"]
    await uploads.cancel_upload(store, caller_of(request).project, upload_id)
    return await _upload_response(request, upload_id)


async def _upload_response(request: Request, upload_id: str, headers: dict[str, str] | None = None) -> Response:
    store, project = files_of(runtime_of(request)), caller_of(request).project
    row = await uploads.get_upload(store, project, upload_id)
    file = None
    if row.file_id is not None:
        try:
            file = await get_file(store, project, row.file_id)
        except FileNotFound:
            pass  # it was deleted since
    return json_response(upload_object(row, file), headers=headers)
