"""The whole product as the OpenAI SDKs see it: the batches to their end, files line by line."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

import httpx2
import orjson
from openai import OpenAI
from openai.types import Batch, FileObject

from tests.system.stack import Stack
from tests.waiting import wait_until

MODEL, WIDTH = "tiny", 16  # of tests/gateway.py: answered within the worker, without a call
HTTP_MODEL = "test/64"  # of tests/system/stack.py: over HTTP, where a test can make it slow
SLOW = {"when": {"contains": "slow"}, "do": {"latency_ms": 20_000}}
ENDPOINT: Literal["/v1/embeddings"] = "/v1/embeddings"
FINAL = ("completed", "failed", "expired", "cancelled")
END_S = 40.0
DAY_S = 86_400


def line(custom_id: str, value: Any = "text", *, model: str | None = MODEL, **body: Any) -> dict[str, Any]:
    """One request of a batch file."""
    fields = {"model": model, "input": value, **body}
    fields = {name: each for name, each in fields.items() if each is not None}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": fields}


def lines(count: int, *, prefix: str = "r", model: str = MODEL, text: str = "text") -> list[dict[str, Any]]:
    return [line(f"{prefix}{number}", f"{text} {number}", model=model) for number in range(count)]


def without(request: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key != name}


def jsonl(requests: Sequence[dict[str, Any] | bytes]) -> bytes:
    return b"".join((each if isinstance(each, bytes) else orjson.dumps(each)) + b"\n" for each in requests)


class Recorder:
    """A client of the Python SDK, and what goes over its wire, newest last. `url` ends in /v1."""

    def __init__(self, url: str, key: str, **options: Any) -> None:
        self.requests: list[httpx2.Request] = []
        self.replies: list[httpx2.Response] = []
        http = httpx2.Client(event_hooks={"request": [self.requests.append], "response": [self._keep]})
        self.client = OpenAI(base_url=url, api_key=key, http_client=http, **{"max_retries": 0, **options})

    def _keep(self, reply: httpx2.Response) -> None:
        reply.read()
        self.replies.append(reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


class OpenAIServer:
    """A running stack and a strict client for it: an answer that is not of the SDK's types raises."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = f"{stack.url}/v1"
        self.client = OpenAI(
            base_url=self.url, api_key=stack.key, max_retries=0, timeout=30, _strict_response_validation=True
        )

    def recorder(self, **options: Any) -> Recorder:
        return Recorder(self.url, self.stack.key, **options)

    def upload(self, requests: Sequence[dict[str, Any] | bytes], name: str = "requests.jsonl") -> FileObject:
        return self.client.files.create(file=(name, jsonl(requests)), purpose="batch")

    def create(self, requests: Sequence[dict[str, Any] | bytes], **fields: Any) -> Batch:
        return self.create_for(self.upload(requests).id, **fields)

    def create_for(self, file_id: str, **fields: Any) -> Batch:
        return self.client.batches.create(
            **{"input_file_id": file_id, "endpoint": ENDPOINT, "completion_window": "24h", **fields}
        )

    def wait_for(self, batch: Batch, *statuses: str) -> Batch:
        """The batch once it has one of these statuses. Raises AssertionError when it ends with another."""

        def reached() -> Batch | None:
            self.stack.processes.check()
            found = self.client.batches.retrieve(batch.id)
            if found.status in statuses:
                return found
            assert found.status not in FINAL, found
            return None

        found = wait_until(reached, END_S, every_s=0.1, what=f"{batch.id} to be {' or '.join(statuses)}")
        assert found is not None
        return found

    def wait_for_count(self, batch: Batch, completed: int) -> Batch:
        """The batch once so many of its requests are completed."""

        def reached() -> Batch | None:
            found = self.client.batches.retrieve(batch.id)
            counts = found.request_counts
            return found if counts is not None and counts.completed >= completed else None

        found = wait_until(reached, END_S, every_s=0.1, what=f"{completed} requests of {batch.id}")
        assert found is not None
        return found

    def run(self, requests: Sequence[dict[str, Any] | bytes], **fields: Any) -> Batch:
        """A batch that has been completed."""
        return self.wait_for(self.create(requests, **fields), "completed")

    def lines_of(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        content = self.client.files.content(file_id).content
        assert content.endswith(b"\n")
        return [orjson.loads(each) for each in content.splitlines()]

    def expire(self, batch: Batch) -> None:
        """Let the window of the batch be over, for so long that calls which are under way are waited for no more."""
        job = f"job_{batch.id.removeprefix('batch_')}"
        self.stack.query(f"UPDATE jobs SET expires_at = {time.time() - 3600} WHERE id = '{job}'")

    @contextmanager
    def stopped_workers(self) -> Iterator[None]:
        """No worker does anything meanwhile: a batch that is created stays `validating`."""
        self._signal_workers(signal.SIGSTOP)
        try:
            while not self.stack.can_write():  # a worker was stopped within a transaction
                self._signal_workers(signal.SIGCONT)
                wait_until(self.stack.can_write, 30, what="the end of the transaction")
                self._signal_workers(signal.SIGSTOP)
            yield
        finally:
            self._signal_workers(signal.SIGCONT)

    def _signal_workers(self, number: signal.Signals) -> None:
        for name in self.stack.workers:
            os.killpg(self.stack.processes.pid(name), number)

    @contextmanager
    def slow_upstream(self) -> Iterator[None]:
        """Calls with the word `slow` in a text take long meanwhile."""
        self.stack.script(SLOW)
        try:
            yield
        finally:
            self.stack.script()


class Receiver:
    """A receiver of webhooks on the loopback address, which accepts what comes."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[Mapping[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.deliveries.append((dict(self.headers.items()), body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def with_type(self, event_type: str, subject: str = "") -> tuple[Mapping[str, str], bytes]:
        """The first delivery of this event; `subject`: the id of what it is about. Waits for it."""

        def found() -> tuple[Mapping[str, str], bytes] | None:
            for headers, body in self.deliveries:
                event = orjson.loads(body)
                if event["type"] == event_type and subject in ("", event["data"]["id"]):
                    return headers, body
            return None

        delivery = wait_until(found, END_S, what=f"the webhook {event_type}")
        assert delivery is not None
        return delivery
