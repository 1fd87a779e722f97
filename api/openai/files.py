"""POST, GET and DELETE of /v1/files: store a file, look at files, remove one."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import Request
from starlette.responses import Response

from api.http import params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.idempotency import REPLAYED, created_before, deleted_meanwhile, reserved_key
from api.http.json_response import json_response, page_response
from api.http.multipart import FormReader
from api.openai.file_objects import file_object
from engine.files import idempotency, purposes
from engine.files.composition import files_of
from engine.files.idempotency import KeyReplay, KeyReservation
from engine.files.purposes import FirstLine
from engine.files.read import delete_file as hide_file
from engine.files.read import get_file as find_file
from engine.files.read import list_files as find_files
from engine.files.write import receive_file
from engine.observability import failpoints
from models.errors import InvalidInput
from models.file import FilePurpose, new_file_id
from models.file_errors import FileNotFound

FIELDS = (
    "purpose",
    "expires_after[anchor]",
    "expires_after[seconds]",
    "expires_after.anchor",
    "expires_after.seconds",
)
# The last two are written by services that are not here: no file has them.
LISTED_PURPOSES = (*FilePurpose, "assistants_output", "fine-tune-results")
MAX_PAGE = 10_000
PAGE_ROWS = 1000  # of one query, and of one step of rendering


class _Form:
    """The form of a request that stores a file. Its fields may come behind the file."""

    def __init__(self, request: Request, max_bytes: int) -> None:
        self._content = hashlib.sha256()
        self._first_line = FirstLine()
        self.reader = FormReader(
            request, file_field="file", field_names=FIELDS, max_bytes=max_bytes, on_file_data=self._look
        )

    def _look(self, data: bytes) -> None:
        self._content.update(data)
        self._first_line.feed(data)

    async def open_file(self) -> None:
        """Read up to the file, and refuse at once what can be known by then."""
        await self.reader.open_file()
        if "purpose" in self.reader.fields:
            self.purpose()

    @property
    def filename(self) -> str:
        return purposes.check_name(self.reader.filename or "", param="file")

    def purpose(self) -> FilePurpose:
        purpose = purposes.check_purpose(self.reader.fields.get("purpose"))
        purposes.check_suffix(purpose, self.filename)
        return purpose

    async def finish(self) -> bytes:
        """Read the rest, and check the whole. Returns the fingerprint of what was sent."""
        fields = await self.reader.finish()
        if self.purpose() is FilePurpose.BATCH:
            self._first_line.check()
        if self.reader.file_bytes == 0:
            raise InvalidInput("The file is empty: send at least one byte.", param="file", code="empty_file")
        pairs = [f"{name}={value}".encode() for name, value in sorted(fields.items())]
        return idempotency.fingerprint_of("file", self._content.digest(), self.filename.encode(), *pairs)

    def expires_after_s(self) -> int | None:
        return purposes.life_s(self.purpose(), purposes.expiry_of_fields(self.reader.fields))


async def create_file(request: Request) -> Response:
    """Store the file of a form, as it arrives."""
    params.reject_unknown_params(request)
    runtime = runtime_of(request)
    form = _Form(request, runtime.settings.max_file_bytes)
    async with reserved_key(request, new_file_id) as reserved:
        with request_body.body_lease(request) as lease:
            await lease.resize(runtime.objects.buffer_bytes)
            await form.open_file()
            if isinstance(reserved, KeyReplay):
                async for _ in form.reader.file_chunks():
                    pass
                file_id = await created_before(request, reserved, await form.finish())
            else:
                file_id = await _store(request, form, reserved)
        try:
            row = await find_file(files_of(runtime), caller_of(request).project, file_id or "")
        except FileNotFound as error:
            raise deleted_meanwhile() from error
    is_new = isinstance(reserved, KeyReservation) and reserved.new_id == row.id
    return json_response(file_object(row), headers={} if is_new else REPLAYED)


async def _store(request: Request, form: _Form, reserved: KeyReservation) -> str:
    """Store the file. Returns its id; that of an earlier one where the request is a retry of the one that made it."""
    runtime, caller = runtime_of(request), caller_of(request)
    store = files_of(runtime)
    chunks = form.reader.file_chunks()
    async with receive_file(store, caller.project, chunks, max_bytes=runtime.settings.max_file_bytes) as received:
        fingerprint = await form.finish()
        expires_after_s = form.expires_after_s()
        if (earlier := await created_before(request, reserved, fingerprint)) is not None:
            return earlier
        await runtime.keys.recheck(caller)
        async with store.database.write() as connection:
            await received.add(
                connection,
                file_id=reserved.new_id,
                key_id=caller.key_id,
                purpose=form.purpose(),
                filename=form.filename,
                expires_after_s=expires_after_s,
            )
            await idempotency.finish_key(connection, store, reserved, fingerprint)
    failpoints.hit("after_file_commit")
    return reserved.new_id


async def list_files(request: Request) -> Response:
    """A page of the project's files, newest first unless `order` is asc."""
    params.reject_unknown_params(request, "limit", "after", "order", "purpose")
    limit = params.int_param(request, "limit", default=MAX_PAGE, low=1, high=MAX_PAGE) or MAX_PAGE
    is_ascending = params.choice_param(request, "order", ("desc", "asc")) == "asc"
    runtime, project = runtime_of(request), caller_of(request).project
    purpose = request.query_params.get("purpose")
    if purpose is not None and purpose not in LISTED_PURPOSES:
        raise InvalidInput(
            f"Invalid 'purpose': supported are {', '.join(LISTED_PURPOSES)}.", param="purpose", code="invalid_value"
        )
    after_id = request.query_params.get("after")
    data: list[dict[str, Any]] = []
    has_more = True
    while has_more and len(data) < limit:
        rows, has_more = await find_files(
            files_of(runtime),
            project,
            limit=min(limit - len(data), PAGE_ROWS),
            after_id=after_id,
            purpose=purpose,
            is_ascending=is_ascending,
        )
        data += [file_object(row) for row in rows]
        after_id = rows[-1].id if rows else after_id
    return page_response(data, has_more=has_more)


async def get_file(request: Request) -> Response:
    """One file."""
    params.reject_unknown_params(request)
    store = files_of(runtime_of(request))
    return json_response(
        file_object(await find_file(store, caller_of(request).project, request.path_params["file_id"]))
    )


async def delete_file(request: Request) -> Response:
    """Remove a file."""
    params.reject_unknown_params(request)
    file_id = request.path_params["file_id"]
    await hide_file(files_of(runtime_of(request)), caller_of(request).project, file_id)
    return json_response({"id": file_id, "object": "file", "deleted": True})
