"""Our HTTP API from the outside: one small client that waits politely and fails in one readable line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx

from cli.client.credentials import is_loopback, resolve_server
from cli.client.responses import decode, foreign_server_error, raise_for_error
from cli.client.retry import RetryPolicy, is_busy
from cli.client.types import Endpoint, EndpointList, Estimate, Job, JobPage, Model, ModelList
from cli.client.upload import chunks, gzipped
from cli.data_dir import DataDir
from cli.error_messages import connection_reason
from cli.errors import CliError, Failure

JOBS = "/v1/embeddings/jobs"
MODELS = "/v1/models"
LONG_POLL_S = 20
SHORTEST_POLL_S = 0.25
UPLOAD_TRIES = 4
TIMEOUT = httpx.Timeout(connect=5.0, read=LONG_POLL_S + 40.0, write=60.0, pool=5.0)


def endpoints_path(model: str) -> str:
    """The path of a model's routes; the name may hold slashes."""
    return f"{MODELS}/{quote(model, safe='/')}/endpoints"


@dataclass(frozen=True, slots=True)
class Submission:
    """The job of a submitted corpus; `is_replay`: it was created by an earlier submission under the same key."""

    job: Job
    is_replay: bool


class Client:
    """A session with one server: reads are repeated while it is busy or away, a corpus is sent under one key."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.is_local = is_loopback(self.url)
        self._retry = retry or RetryPolicy()
        self._http = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=TIMEOUT,
            transport=transport,
            trust_env=not self.is_local,  # a proxy of the environment cannot reach this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[Model]:
        """The models that the key may use. Raises CliError when another program than embedmill answers."""
        reply = self._get(MODELS)
        models = decode(reply, ModelList).data
        if any(model.space is None for model in models):  # another gateway or model server lists its models alike
            raise foreign_server_error(reply)
        return models

    def endpoints(self, model: str) -> list[Endpoint]:
        """The routes of a model, as the process that answers knows them."""
        return decode(self._get(endpoints_path(model)), EndpointList).data

    def job(self, job_id: str) -> Job:
        """One job as it is now."""
        return decode(self._get(f"{JOBS}/{job_id}"), Job)

    def jobs(self, *, limit: int, status: str | None = None) -> JobPage:
        """The newest jobs."""
        return decode(self._get(JOBS, {"limit": limit, "status": status}), JobPage)

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """Whatever is there, exactly as the server wrote it."""
        return self._get(path, query).content

    def changes(self, job_id: str) -> Iterator[Job]:
        """The job now, then again whenever it changed, until it is finished."""
        etag = None
        while True:
            requested_at = self._retry.clock()
            query = {"wait": LONG_POLL_S if etag else None}
            reply = self._get(f"{JOBS}/{job_id}", query, {"if-none-match": etag} if etag else {})
            if reply.status_code != 304:
                etag = reply.headers.get("etag")
                job = decode(reply, Job)
                yield job
                if job.finished:
                    return
            # A job that changes all the time, or a server that does not hold the request, must not make this spin.
            self._retry.sleep(max(0.0, SHORTEST_POLL_S - (self._retry.clock() - requested_at)))

    def create_job(
        self, lines: Callable[[], Iterable[bytes]], options: Mapping[str, Any], idempotency_key: str
    ) -> Submission:
        """Stream a corpus as one job. A broken upload is sent again under the same key, so that it never runs twice."""

        def busy(reply: httpx.Response) -> bool:
            # 409: an earlier try under this key is still being read, unless the server says that waiting is no use.
            waits = reply.status_code == 409 and reply.headers.get("x-should-retry") != "false"
            return waits or is_busy(reply)

        reply = self._upload(lines, options, {"idempotency-key": idempotency_key}, busy)
        return Submission(decode(reply, Job), reply.headers.get("idempotent-replayed") == "true")

    def estimate(self, lines: Callable[[], Iterable[bytes]], options: Mapping[str, Any]) -> Estimate:
        """The estimate for the corpus as a job: nothing is embedded or stored."""
        return decode(self._upload(lines, {**options, "dry_run": "true"}, {}, is_busy), Estimate)

    def _upload(
        self,
        lines: Callable[[], Iterable[bytes]],
        options: Mapping[str, Any],
        headers: Mapping[str, str],
        busy: Callable[[httpx.Response], bool],
    ) -> httpx.Response:
        upload_headers = {"content-type": "application/x-ndjson", **headers}
        if not self.is_local:
            upload_headers["content-encoding"] = "gzip"

        def send() -> httpx.Response:
            body = chunks(lines()) if self.is_local else gzipped(chunks(lines()))
            return self._http.post(JOBS, params=_without_none(options), headers=upload_headers, content=body)

        return self._send_with_retries(send, busy, failures_allowed=UPLOAD_TRIES)

    def base64_results(self, job_id: str, start: int, stop: int) -> bytes:
        """The result lines of an index range, all in memory: keep the range small."""
        query = {"format": "ndjson", "encoding_format": "base64", "start": start, "stop": stop}
        return self._get(f"{JOBS}/{job_id}/results", query, self._results_headers("ndjson")).content

    def copy_results(
        self, job_id: str, start: int, stop: int, open_target: Callable[[], Callable[[bytes], object]], *, format: str
    ) -> None:
        """Pass the `ndjson` or `npy` results of an index range on as they arrive.

        `begin` is called for a place to write to, and again when the connection broke and everything is sent anew.
        """
        query: dict[str, Any] = {"format": format, "start": start, "stop": stop}
        headers = self._results_headers(format)

        def send() -> httpx.Response:
            write = open_target()
            with self._http.stream("GET", f"{JOBS}/{job_id}/results", params=query, headers=headers) as reply:
                if reply.is_error:
                    reply.read()
                else:
                    for chunk in reply.iter_bytes():
                        write(chunk)
            return reply

        self._send_with_retries(send)

    def errors(self, job_id: str) -> Iterator[bytes]:
        """The error lines of a job as they arrive, one JSON object each."""
        partial_line = b""
        try:
            with self._http.stream("GET", f"{JOBS}/{job_id}/errors") as reply:
                if reply.is_error:
                    reply.read()
                    raise_for_error(reply)
                for chunk in reply.iter_bytes():
                    *lines, partial_line = (partial_line + chunk).split(b"\n")
                    yield from filter(None, lines)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if partial_line:
            yield partial_line

    def job_action(self, job_id: str, action: str, options: Mapping[str, Any] | None = None) -> Job:
        """Cancel, pause, resume or retry a job. Returns the job afterwards."""
        body = _without_none(options or {})
        return decode(self._once("POST", f"{JOBS}/{job_id}/{action}", body or None), Job)

    def delete(self, job_id: str) -> None:
        """Remove a job and its results."""
        self._once("DELETE", f"{JOBS}/{job_id}")

    def readiness(self) -> tuple[int, bytes]:
        """Status and body of /readyz, requested once. Raises httpx.TransportError when nothing answers."""
        return self.fetch_page("/readyz")

    def fetch_page(self, url: str) -> tuple[int, bytes]:
        """Status and body of a page that needs no key, requested once and without the key."""
        reply = self._http.get(url, timeout=5.0, headers={"authorization": ""})
        return reply.status_code, reply.content

    def _results_headers(self, format: str) -> dict[str, str]:
        # Floats hardly pack, and on one machine nothing is gained by packing text either.
        return {"accept-encoding": "identity"} if self.is_local or format == "npy" else {}

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            return raise_for_error(self._http.request(method, path, json=body))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _get(
        self, path: str, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        def send() -> httpx.Response:
            return self._http.get(path, params=_without_none(query or {}), headers=headers)

        return self._send_with_retries(send)

    def _send_with_retries(
        self,
        send: Callable[[], httpx.Response],
        busy: Callable[[httpx.Response], bool] = is_busy,
        failures_allowed: int | None = None,
    ) -> httpx.Response:
        try:
            return raise_for_error(self._retry.send_until_answered(send, busy, failures_allowed))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.TransportError) -> CliError:
        reason, fix = connection_reason(error)
        if isinstance(error, httpx.ConnectError):
            fix += "; `embedmill up` starts a server, --url names another"
        return CliError(f"no answer from {self.url}: {reason}", fix, failure=Failure.SERVER)


def connect(url: str | None, api_key: str | None) -> Client:
    """A client from the command's options, which hold the shell's environment already, else from the data directory."""
    return Client(*resolve_server(url, api_key, DataDir.from_environment()))


def _without_none(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
