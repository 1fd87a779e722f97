"""Our HTTP API from the outside: one small client that waits politely and fails in one readable line."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from cli.data_dir import DataDir
from cli.errors import CliError, UsageError
from cli.job import Job, JobPage, Model, ModelList
from cli.replies import BUSY_STATUSES, checked, decoded, pause_s
from cli.upload import chunks, gzipped

JOBS = "/v1/embeddings/jobs"
MODELS = "/v1/models"
# How long a server may be away before a command gives up. `up` restarts a dead API in a few seconds, but an upload that
# died with it holds its idempotency key for a lease of 60.
PATIENCE_S = 90.0
# The same for a server that never answered yet: a wrong address rather than a restart.
FIRST_PATIENCE_S = 4.0
LONG_POLL_S = 20
SHORTEST_POLL_S = 0.25
UPLOAD_TRIES = 4
TIMEOUT = httpx.Timeout(connect=5.0, read=LONG_POLL_S + 40.0, write=60.0, pool=5.0)


class Client:
    """A session with one server: reads are repeated while it is busy or away, a corpus is sent under one key."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.is_local = _is_loopback(self.url)
        self._sleep = sleep
        self._clock = clock
        self._patience_s = patience_s
        self._has_answered = False
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
        return decoded(self._get(MODELS), ModelList).data

    def job(self, job_id: str) -> Job:
        return decoded(self._get(f"{JOBS}/{job_id}"), Job)

    def jobs(self, *, limit: int, status: str | None = None) -> JobPage:
        """The newest jobs."""
        return decoded(self._get(JOBS, {"limit": limit, "status": status}), JobPage)

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """Whatever is there, exactly as the server wrote it."""
        return self._get(path, query).content

    def changes(self, job_id: str) -> Iterator[Job]:
        """The job now, then again whenever it changed, until it is finished."""
        etag = None
        while True:
            asked_at = self._clock()
            query = {"wait": LONG_POLL_S if etag else None}
            reply = self._get(f"{JOBS}/{job_id}", query, {"if-none-match": etag} if etag else {})
            if reply.status_code != 304:
                etag = reply.headers.get("etag")
                job = decoded(reply, Job)
                yield job
                if job.finished:
                    return
            # A job that changes all the time, or a server that does not hold the request, must not make this spin.
            self._sleep(max(0.0, SHORTEST_POLL_S - (self._clock() - asked_at)))

    def create_job(self, lines: Callable[[], Iterable[bytes]], options: Mapping[str, Any], idempotency_key: str) -> Job:
        """Stream a corpus as one job. A broken upload is sent again under the same key, so that it never runs twice."""
        headers = {"content-type": "application/x-ndjson", "idempotency-key": idempotency_key}
        if not self.is_local:
            headers["content-encoding"] = "gzip"

        def send() -> httpx.Response:
            body = chunks(lines()) if self.is_local else gzipped(chunks(lines()))
            return self._http.post(JOBS, params=_given(options), headers=headers, content=body)

        def is_busy(reply: httpx.Response) -> bool:
            # 409: an earlier try under this key is still being read, unless the server says that waiting is no use.
            waits = reply.status_code == 409 and reply.headers.get("x-should-retry") != "false"
            return waits or reply.status_code in BUSY_STATUSES

        return decoded(self._patiently(send, is_busy, tries=UPLOAD_TRIES), Job)

    def results(
        self, job_id: str, *, format: str, start: int | None = None, stop: int | None = None, base64: bool = False
    ) -> httpx.Response:
        """The results of an index range as `ndjson` or `npy`, read whole: keep the range small."""
        query = {
            "format": format,
            "start": start,
            "stop": stop,
            "encoding_format": "base64" if base64 else None,
        }
        # Floats hardly pack, and on one machine nothing is gained by packing text either.
        headers = {"accept-encoding": "identity"} if self.is_local or format == "npy" else {}
        return self._get(f"{JOBS}/{job_id}/results", query, headers)

    def errors(self, job_id: str) -> Iterator[bytes]:
        """The error lines of a job as they arrive, one JSON object each."""
        rest = b""
        try:
            with self._http.stream("GET", f"{JOBS}/{job_id}/errors") as reply:
                if reply.is_error:
                    reply.read()
                    checked(reply)
                for chunk in reply.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from filter(None, lines)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if rest:
            yield rest

    def cancel(self, job_id: str) -> Job:
        return decoded(self._once("POST", f"{JOBS}/{job_id}/cancel"), Job)

    def delete(self, job_id: str) -> None:
        self._once("DELETE", f"{JOBS}/{job_id}")

    def readiness(self) -> tuple[int, bytes]:
        """Status and body of /readyz, asked once. Raises httpx.TransportError when nothing answers."""
        reply = self._http.get("/readyz", timeout=5.0)
        return reply.status_code, reply.content

    def _once(self, method: str, path: str) -> httpx.Response:
        try:
            return checked(self._http.request(method, path))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _get(
        self, path: str, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        def send() -> httpx.Response:
            return self._http.get(path, params=_given(query or {}), headers=headers)

        return checked(self._patiently(send, lambda reply: reply.status_code in BUSY_STATUSES))

    def _patiently(
        self,
        send: Callable[[], httpx.Response],
        is_busy: Callable[[httpx.Response], bool],
        tries: int | None = None,
    ) -> httpx.Response:
        """Send until an answer is not "busy". Gives up when the server was busy or away for too long, or after `tries`
        that broke off halfway: those cost something, knocking at a closed door does not.
        """
        attempt = 0
        failing_since: float | None = None
        while True:
            attempt += 1
            reply, problem = None, None
            try:
                reply = send()
            except httpx.TransportError as error:
                problem = error
            if reply is not None:
                self._has_answered = True
                if not is_busy(reply):
                    return reply
            if tries is not None and problem is not None and not isinstance(problem, httpx.ConnectError):
                tries -= 1
                failing_since = None
                gives_up = tries == 0
            else:
                now = self._clock()
                failing_since = now if failing_since is None else failing_since
                patience_s = self._patience_s if self._has_answered else min(FIRST_PATIENCE_S, self._patience_s)
                gives_up = now - failing_since >= patience_s
            if gives_up and reply is not None:
                return reply
            if gives_up and problem is not None:
                raise self._unreachable(problem) from problem
            self._sleep(pause_s(attempt, reply))

    def _unreachable(self, error: httpx.TransportError) -> CliError:
        reason = str(error) or type(error).__name__
        return CliError(
            f"no answer from {self.url}: {reason}", "start the server with `embedmill up`, or name another with --url"
        )


def connect(url: str | None, api_key: str | None) -> Client:
    """A client from the command's options, which hold the shell's environment already, else from the data directory."""
    place = DataDir.from_environment()
    url = url or place.url()
    if url is None:
        raise UsageError(
            f"no server is known: there is no --url, no EMBEDMILL_URL and no {place.url_file}",
            "start one with `embedmill up`, or set EMBEDMILL_DATA_DIR to its data directory",
        )
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(f"{url!r} is not a URL", "it must look like http://127.0.0.1:8080")
    return Client(url, api_key or place.key())


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
