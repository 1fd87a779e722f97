"""Files, uploads, batches and webhook endpoints in memory, for tests of the command line: faults on request."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from email.parser import BytesParser
from typing import Any

import httpx

from cli.client.api_client import Client
from cli.client.retry import RetryPolicy

BATCH_ID = "batch_0123456789abcdef0123456789abcdef"
ENDPOINT_ID = "we_0123456789abcdef0123456789abcdef"
EVENTS = ["evt_1", "evt_2", "evt_3"]
SECRET = "whsec_" + "c2VjcmV0" * 4


class FakeFilesApi:
    """Takes files; a batch of one is validated at the first poll, runs at the second, and has ended at the third."""

    def __init__(self) -> None:
        self.requests: list[httpx.Request] = []
        self.sleeps: list[float] = []
        self.faults: list[httpx.Response | Exception] = []  # answered first, one a request
        self.on_request: Callable[[httpx.Request], None] = lambda request: None
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.uploads: dict[str, dict[str, Any]] = {}
        self.breaks_after: list[int] = []  # the next downloads end after so many bytes
        self.ignores_range = False
        self.batch: dict[str, Any] = {}
        self.final: dict[str, Any] = {"status": "completed"}
        self.replayed: list[str] = []
        self._keys: dict[str, str] = {}
        self._polls = 0

    def client(self) -> Client:
        return Client(
            "http://127.0.0.1:1",
            "em_key",
            transport=httpx.MockTransport(self.answer),
            retry=RetryPolicy(sleep=self.sleeps.append, clock=lambda: sum(self.sleeps)),
        )

    def add_file(self, content: bytes, filename: str, purpose: str = "batch") -> str:
        file_id = f"file-{len(self.files):032x}"
        self.contents[file_id] = content
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "filename": filename,
            "purpose": purpose,
            "created_at": 1_700_000_000,
            "expires_at": None,
        }
        return file_id

    def answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        self.on_request(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        for pattern, answer in (
            (r"/v1/files", self._files),
            (r"/v1/files/(?P<name>[^/]+)", self._file),
            (r"/v1/files/(?P<name>[^/]+)/content", self._content),
            (r"/v1/uploads(/(?P<name>[^/]+)/(?P<verb>\w+))?", self._upload),
            (r"/v1/batches", self._batches),
            (r"/v1/batches/(?P<name>[^/]+)(/(?P<verb>cancel))?", self._batch),
            (r"/v1/webhook_event_types", self._event_types),
            (r"/v1/webhook_endpoints(/(?P<name>[^/]+))?(/(?P<verb>\w+))?(/(?P<event>\w+)/replay)?", self._webhooks),
        ):
            if found := re.fullmatch(pattern, request.url.path):
                return answer(request, **found.groupdict())
        return self._missing("route")

    def _files(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            found = list(reversed(self.files.values()))
            return httpx.Response(200, json={"object": "list", "data": found, "has_more": False})
        key = request.headers["idempotency-key"]
        if key not in self._keys:
            form = form_of(request)
            self._keys[key] = self.add_file(form["file"][1], form["file"][0] or "", form["purpose"][1].decode())
        return httpx.Response(200, json=self.files[self._keys[key]])

    def _file(self, request: httpx.Request, name: str) -> httpx.Response:
        if name not in self.files:
            return self._missing("File")
        if request.method == "DELETE":
            del self.files[name]
            return httpx.Response(200, json={"id": name, "object": "file", "deleted": True})
        return httpx.Response(200, json=self.files[name])

    def _content(self, request: httpx.Request, name: str) -> httpx.Response:
        content, status = self.contents[name], 200
        if (found := re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))) and not self.ignores_range:
            content, status = content[int(found[1]) :], 206
        if self.breaks_after:
            return httpx.Response(status, stream=_Broken(content[: self.breaks_after.pop(0)]))
        return httpx.Response(status, content=content)

    def _upload(self, request: httpx.Request, name: str | None, verb: str | None) -> httpx.Response:
        if name is None:
            made = {"id": f"upload_{len(self.uploads)}", "object": "upload", "status": "pending", "file": None}
            self.uploads[str(made["id"])] = made | {"declared": json.loads(request.content)}
            return httpx.Response(200, json=made)
        upload = self.uploads[name]
        if verb == "parts":
            part_id = f"part_{len(self.parts)}"
            self.parts[part_id] = form_of(request)["data"][1]
            return httpx.Response(200, json={"id": part_id, "object": "upload.part", "upload_id": name})
        if verb == "cancel":
            upload["status"] = "cancelled"
        else:
            body = json.loads(request.content)
            content = b"".join(self.parts[each] for each in body["part_ids"])
            declared = upload["declared"]
            if hashlib.md5(content).hexdigest() != body["md5"] or len(content) != declared["bytes"]:
                return httpx.Response(400, json={"error": {"message": "another MD5", "code": "invalid_value"}})
            file_id = self.add_file(content, declared["filename"], declared["purpose"])
            upload |= {"status": "completed", "file": self.files[file_id]}
        return httpx.Response(200, json=upload)

    def _batches(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"object": "list", "data": [self.batch], "has_more": False})
        self.batch = {"id": BATCH_ID, "object": "batch", "status": "validating", **json.loads(request.content)}
        return httpx.Response(200, json=self.batch)

    def _batch(self, request: httpx.Request, name: str, verb: str | None) -> httpx.Response:
        if name != BATCH_ID or not self.batch:
            return self._missing("batch")
        if verb == "cancel":
            self.batch["status"] = "cancelling"
            return httpx.Response(200, json=self.batch)
        self._polls += 1
        if self._polls == 2:
            counts = {"total": 4, "completed": 2, "failed": 0}
            self.batch |= {"status": "in_progress", "request_counts": counts}
        elif self._polls >= 3:
            counts = {"total": 4, "completed": 4, "failed": 0}
            self.batch |= {"request_counts": counts} | self.final
        return httpx.Response(200, json=self.batch)

    def _event_types(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"object": "list", "data": ["batch.completed", "batch.failed"]})

    def _webhooks(
        self, request: httpx.Request, name: str | None, verb: str | None, event: str | None
    ) -> httpx.Response:
        made = {
            "id": ENDPOINT_ID,
            "object": "webhook_endpoint",
            "url": "https://example.com/hook",
            "name": "mine",
            "event_types": ["batch.completed"],
        }
        if name is None and request.method == "GET":
            return httpx.Response(200, json={"object": "list", "data": [made], "has_more": False})
        if name not in (None, ENDPOINT_ID):
            return self._missing("webhook endpoint")
        if event is not None:
            self.replayed.append(event)
        elif verb == "deliveries":
            after = request.url.params.get("after")
            rest = EVENTS[EVENTS.index(after) + 1 :] if after else EVENTS
            page = [{"id": each, "type": "batch.completed", "state": "dead", "attempts": 9} for each in rest[:2]]
            return httpx.Response(200, json={"object": "list", "data": page, "has_more": len(rest) > 2})
        elif verb == "test":
            return httpx.Response(200, json={"event_type": "batch.completed", "status_code": 204, "success": True})
        elif verb == "rotate_secret":
            return httpx.Response(200, json=made | {"signing_secret": SECRET})
        elif name is None:
            return httpx.Response(200, json=made | json.loads(request.content) | {"signing_secret": SECRET})
        return httpx.Response(200, json=made)

    def _missing(self, what: str) -> httpx.Response:
        return httpx.Response(404, json={"error": {"message": f"No such {what} object", "code": None, "param": "id"}})


class _Broken(httpx.SyncByteStream):
    """A body that breaks off."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Any:
        yield self._content
        raise httpx.RemoteProtocolError("peer closed connection without sending complete message body")


def form_of(request: httpx.Request) -> dict[str, tuple[str | None, bytes]]:
    """The fields of a multipart form: the filename and the bytes of each, by its name."""
    head = b"content-type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    message = BytesParser().parsebytes(head + request.content)
    found: dict[str, tuple[str | None, bytes]] = {}
    for part in message.get_payload():
        assert not isinstance(part, str)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        found[str(part.get_param("name", header="content-disposition"))] = (part.get_filename(), content)
    return found
