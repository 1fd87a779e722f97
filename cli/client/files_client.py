"""The files of a server, over HTTP: sent in one request or in parts, fetched with as many requests as it takes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import IO, Any, cast

import httpx

from cli.client.file_reader import FileRange
from cli.client.file_types import FilePage, StoredFile, Upload, UploadPart
from cli.client.responses import decode
from cli.client.session import Session, waits_for_key, without_none
from cli.errors import CliError, Failure

FILES = "/v1/files"
UPLOADS = "/v1/uploads"
MEDIA_TYPE = "application/octet-stream"
SEND_TRIES = 5
FETCH_TRIES = 20  # each goes on where the one before broke off
OpenRange = Callable[[int, int], FileRange]


class Files:
    """The files of the key's project."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check_access(self) -> None:
        """Raises CliError where the address or the key is wrong, which an upload would find out late.

        A server that has answered once is waited for when it goes away: a wrong address is not.
        """
        self.page(limit=1)

    def create(
        self, body: Callable[[], FileRange], filename: str, purpose: str, expires_after_s: int | None
    ) -> StoredFile:
        """Send a file in one request. `body` is called for each try; all of them make one file."""
        fields: dict[str, str] = {"purpose": purpose}
        if expires_after_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after_s)}
        key = {"idempotency-key": uuid.uuid4().hex}
        return decode(self._send_form(FILES, "file", filename, body, data=fields, headers=key), StoredFile)

    def create_upload(self, size: int, filename: str, purpose: str, expires_after_s: int | None) -> Upload:
        """Begin a file that is sent in parts. `size`: of all of it, in bytes."""
        expiry = None if expires_after_s is None else {"anchor": "created_at", "seconds": expires_after_s}
        body = {
            "bytes": size,
            "filename": filename,
            "mime_type": MEDIA_TYPE,
            "purpose": purpose,
            "expires_after": expiry,
        }
        return decode(self._post(UPLOADS, without_none(body), key=uuid.uuid4().hex), Upload)

    def add_part(self, upload_id: str, body: Callable[[], FileRange]) -> UploadPart:
        """Send a part. One that was sent twice is named once at the end, and the other is dropped."""
        return decode(self._send_form(f"{UPLOADS}/{upload_id}/parts", "data", "part", body), UploadPart)

    def complete(self, upload_id: str, part_ids: list[str], md5: str) -> StoredFile:
        """The file of these parts. Raises CliError where their MD5 is another."""
        body = {"part_ids": part_ids, "md5": md5}
        file = decode(self._post(f"{UPLOADS}/{upload_id}/complete", body), Upload).file
        if file is None:
            raise CliError(f"the server has completed {upload_id}, and names no file", failure=Failure.SERVER)
        return file

    def cancel_upload(self, upload_id: str) -> None:
        """Drop the parts that have arrived."""
        self._session.once("POST", f"{UPLOADS}/{upload_id}/cancel")

    def get(self, file_id: str) -> StoredFile:
        """One file, without its bytes."""
        return decode(self._session.get(f"{FILES}/{file_id}"), StoredFile)

    def page(self, *, limit: int, purpose: str | None = None) -> FilePage:
        """The newest files."""
        return decode(self._session.get(FILES, {"limit": limit, "purpose": purpose}), FilePage)

    def delete(self, file_id: str) -> None:
        """Remove a file."""
        self._session.once("DELETE", f"{FILES}/{file_id}")

    def fetch(self, file: StoredFile, write: Callable[[bytes], object]) -> None:
        """Pass the bytes of a file on as they arrive; after a break, those that are missing."""
        written = 0

        def send() -> httpx.Response:
            nonlocal written
            headers = {"accept-encoding": "identity"}
            if written:
                headers["range"] = f"bytes={written}-"
            with self._session.stream(f"{FILES}/{file.id}/content", headers=headers) as reply:
                if not reply.is_error:
                    skipped = 0 if reply.status_code == httpx.codes.PARTIAL_CONTENT else written
                    for chunk in reply.iter_bytes():
                        unwritten = chunk[skipped:]
                        skipped -= len(chunk) - len(unwritten)
                        write(unwritten)
                        written += len(unwritten)
                        if written >= file.bytes:  # no break can take it back, and no range is left to request
                            break
            return reply

        if file.bytes:
            self._session.send_with_retries(send, failures_allowed=FETCH_TRIES)
        if written != file.bytes:
            raise CliError(f"{file.id} has {file.bytes:,} bytes, and {written:,} came", failure=Failure.SERVER)

    def _send_form(
        self, path: str, field: str, filename: str, body: Callable[[], FileRange], **request: Any
    ) -> httpx.Response:
        def send() -> httpx.Response:
            files = {field: (filename, cast("IO[bytes]", body()), MEDIA_TYPE)}
            return self._session.post(path, files=files, **request)

        return self._session.send_with_retries(send, waits_for_key, failures_allowed=SEND_TRIES)

    def _post(self, path: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {"idempotency-key": key} if key else {}
        return self._session.send_with_retries(
            lambda: self._session.post(path, json=body, headers=headers), waits_for_key, failures_allowed=SEND_TRIES
        )
