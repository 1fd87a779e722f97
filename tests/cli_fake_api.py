"""The bulk API in memory, for tests of the command line: no sockets, faults on request."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

import httpx
import numpy as np

from cli.client.api_client import Client
from cli.client.retry import MAX_WAIT_S, RetryPolicy

JOB_ID = "job_0123456789abcdef0123456789abcdef"
WIDTH = 4
ESTIMATE = {
    "object": "embedding.job.estimate",
    "model": "tiny",
    "dimensions": WIDTH,
    "inputs": 3,
    "usable_inputs": 2,
    "refused_inputs": 1,
    "duplicates": 1,
    "errors": [{"code": "empty_input", "count": 1, "example_index": 2, "message": "no"}],
    "tokens": 1234,
    "estimated": True,
    "calls": 1,
    "cost_usd": "0.0246",
    "cost_usd_with_duplicates": "0.05",
    "eta_seconds": 125,
}


class FakeApi:
    """Takes one corpus, finishes its job at the second poll, and fails the inputs that are not texts."""

    def __init__(self) -> None:
        self.models = ["tiny"]
        self.url = ""  # where serving() listens
        self.bodies: list[bytes] = []
        self.requests: list[httpx.Request] = []
        self.sleeps: list[float] = []
        self.faults: list[httpx.Response | Exception] = []  # answered first, one a request
        self.final_status: str | None = None
        self.estimate: dict[str, object] = dict(ESTIMATE)
        self.waiting_on: str | None = None
        self.status = ""  # of the job, once it is set: then it does not move by itself
        self.max_cost_usd: str | None = None
        self.end_reasons: list[dict[str, object]] = []  # errors of the job that are of no input
        self.on_request: Callable[[httpx.Request], None] = lambda request: None
        self._polls = 0
        self.pending: set[int] = set()  # indexes that have no outcome yet
        self.replayed = False  # the next submission is answered with the job of an earlier one

    def client(self, *, max_wait_s: float = MAX_WAIT_S) -> Client:
        return Client(
            "http://127.0.0.1:1",
            "em_key",
            transport=httpx.MockTransport(self.answer),
            retry=RetryPolicy(sleep=self.sleeps.append, clock=lambda: sum(self.sleeps), max_wait_s=max_wait_s),
        )

    @property
    def inputs(self) -> list[object]:
        """What each line of the last corpus means; None for a line that is not a text."""
        read: list[object] = []
        for line in b"".join(self.bodies[-1:]).split(b"\n")[:-1]:
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            read.append(value.get("text") if isinstance(value, dict) else value)
        return read

    @property
    def ids(self) -> list[str | None]:
        lines = b"".join(self.bodies[-1:]).split(b"\n")[:-1]
        return [json.loads(line).get("id") if line.startswith(b"{") else None for line in lines]

    def vector(self, index: int) -> np.ndarray:
        return np.full(WIDTH, index, dtype="<f4")

    def answer(self, request: httpx.Request) -> httpx.Response:
        body = request.read()
        self.requests.append(request)
        self.on_request(request)
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        path = request.url.path
        if path == "/v1/models":
            return httpx.Response(
                200, json={"object": "list", "data": [{"id": name, "space": "s"} for name in self.models]}
            )
        if path == "/v1/embeddings/jobs" and request.method == "POST":
            if request.url.params.get("dry_run"):
                return httpx.Response(200, json=self.estimate)
            self.bodies.append(body)
            if self.replayed:
                return httpx.Response(
                    200, json=self.job("in_progress", done=0), headers={"idempotent-replayed": "true"}
                )
            return httpx.Response(202, json=self.job("validating", done=0))
        if path == f"/v1/embeddings/jobs/{JOB_ID}/results":
            return self._results(request)
        if path == f"/v1/embeddings/jobs/{JOB_ID}/errors":
            return httpx.Response(200, content=b"".join(self._lines(0, len(self.inputs), errors_only=True)))
        if path in (f"/v1/embeddings/jobs/{JOB_ID}/pause", f"/v1/embeddings/jobs/{JOB_ID}/resume"):
            self.status = "paused" if path.endswith("pause") else "in_progress"
            self.max_cost_usd = json.loads(body or b"{}").get("max_cost_usd") or self.max_cost_usd
        elif path == f"/v1/embeddings/jobs/{JOB_ID}" and not self.status:
            return self._poll(is_conditional="if-none-match" in request.headers)
        if self.status:
            return httpx.Response(200, json=self.job(self.status, done=0))
        return httpx.Response(404, json={"error": {"message": "No job found.", "code": "job_not_found"}})

    def job(self, status: str, *, done: int) -> dict[str, object]:
        total = len(self.inputs)
        failed = sum(not self._good(value) for value in self.inputs) if done else 0
        errors = [{"code": "invalid_input", "count": failed, "example_index": 0, "message": "no"}] if failed else []
        return {
            "id": JOB_ID,
            "status": status,
            "model": "tiny",
            "dimensions": WIDTH,
            "counts": {
                "total": None if self.end_reasons else total,
                "completed": max(0, done - failed),
                "failed": failed,
                "pending": total - done,
            },
            "cost_usd": "0.0246",
            "max_cost_usd": self.max_cost_usd,
            "rate": {"inputs_per_second": 8123.4, "tokens_per_minute": 1},
            "eta_seconds": 5,
            "waiting_on": self.waiting_on,
            "errors": errors + self.end_reasons,
        }

    def _poll(self, *, is_conditional: bool) -> httpx.Response:
        self._polls += 1
        total = len(self.inputs)
        if self._polls == 1:
            return httpx.Response(200, json=self.job("in_progress", done=total // 2), headers={"etag": '"1"'})
        if self._polls == 2 and is_conditional:
            return httpx.Response(304)
        ends_well = all(self._good(value) for value in self.inputs)
        status = self.final_status or ("completed" if ends_well else "completed_with_errors")
        return httpx.Response(200, json=self.job(status, done=total), headers={"etag": '"2"'})

    def _results(self, request: httpx.Request) -> httpx.Response:
        start, stop = int(request.url.params["start"]), min(int(request.url.params["stop"]), len(self.inputs))
        if request.url.params["format"] == "ndjson":
            return httpx.Response(200, content=b"".join(self._lines(start, stop, errors_only=False)))
        failed = np.full(WIDTH, np.nan, dtype="<f4")
        there = [self._good(value) and i not in self.pending for i, value in enumerate(self.inputs)]
        rows = np.stack([self.vector(i) if there[i] else failed for i in range(start, stop)])
        file = io.BytesIO()
        np.save(file, rows)
        return httpx.Response(200, content=file.getvalue())

    def _lines(self, start: int, stop: int, *, errors_only: bool) -> list[bytes]:
        lines, inputs, ids = [], self.inputs, self.ids
        for index in range(start, stop):
            if index in self.pending:
                continue
            line: dict[str, object] = {"index": index, "id": ids[index]}
            if not self._good(inputs[index]):
                line["error"] = {"code": "invalid_input", "message": "no", "retryable": False}
            elif errors_only:
                continue
            else:
                line["embedding"] = base64.b64encode(self.vector(index).tobytes()).decode()
            lines.append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        return lines

    def _good(self, value: object) -> bool:
        return isinstance(value, str) and value != ""


class Api(Protocol):
    """Whatever answers requests."""

    def answer(self, request: httpx.Request) -> httpx.Response: ...


@contextmanager
def serving(api: Api) -> Iterator[str]:
    """The same API behind a socket, for commands in processes of their own: its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_DELETE(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            parts = []
            if self.headers.get("transfer-encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
            else:
                parts.append(self.rfile.read(int(self.headers.get("content-length") or 0)))
            self._answer(b"".join(parts))

        def _answer(self, body: bytes) -> None:
            url = f"http://127.0.0.1{self.path}"
            reply = api.answer(httpx.Request(self.command, url, headers=dict(self.headers), content=body))
            content = reply.read()
            self.send_response(reply.status_code)
            for name in ("etag", "location", "content-type", "idempotent-replayed"):
                if name in reply.headers:
                    self.send_header(name, reply.headers[name])
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the commands' own lines are what is looked at."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
