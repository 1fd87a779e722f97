"""The models and jobs of a server, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from cli.client.responses import decode, foreign_server_error, raise_for_error
from cli.client.retry import is_busy
from cli.client.session import LONG_POLL_S, Session, server_address, waits_for_key, without_none
from cli.client.types import Endpoint, EndpointList, Estimate, Job, JobPage, Model, ModelList
from cli.client.upload import chunks, gzipped

JOBS = "/v1/embeddings/jobs"
MODELS = "/v1/models"
SHORTEST_POLL_S = 0.25
UPLOAD_TRIES = 4
LineSink = Callable[[bytes], bool]


def endpoints_path(model: str) -> str:
    """The path of a model's routes; the name may hold slashes."""
    return f"{MODELS}/{quote(model, safe='/')}/endpoints"


@dataclass(frozen=True, slots=True)
class Submission:
    """The job of a submitted corpus; `is_replay`: it was created by an earlier submission under the same key."""

    job: Job
    is_replay: bool


class Client(Session):
    """The models and jobs of one server. A corpus is sent under one key."""

    def models(self) -> list[Model]:
        """The models that the key may use. Raises CliError when another program than embedmill answers."""
        reply = self.get(MODELS)
        models = decode(reply, ModelList).data
        if any(model.space is None for model in models):  # another gateway or model server lists its models alike
            raise foreign_server_error(reply)
        return models

    def endpoints(self, model: str) -> list[Endpoint]:
        """The routes of a model, as the process that answers knows them."""
        return decode(self.get(endpoints_path(model)), EndpointList).data

    def job(self, job_id: str) -> Job:
        """One job as it is now."""
        return decode(self.get(f"{JOBS}/{job_id}"), Job)

    def jobs(self, *, limit: int, status: str | None = None) -> JobPage:
        """The newest jobs."""
        return decode(self.get(JOBS, {"limit": limit, "status": status}), JobPage)

    def json(self, path: str, query: Mapping[str, Any] | None = None) -> bytes:
        """Whatever is there, exactly as the server wrote it."""
        return self.get(path, query).content

    def changes(self, job_id: str) -> Iterator[Job]:
        """The job now, then again whenever it changed, until it is finished."""
        etag = None
        while True:
            requested_at = self.retry.clock()
            query = {"wait": LONG_POLL_S if etag else None}
            reply = self.get(f"{JOBS}/{job_id}", query, {"if-none-match": etag} if etag else {})
            if reply.status_code != 304:
                etag = reply.headers.get("etag")
                job = decode(reply, Job)
                yield job
                if job.finished:
                    return
            # A job that changes all the time, or a server that does not hold the request, must not make this spin.
            self.retry.sleep(max(0.0, SHORTEST_POLL_S - (self.retry.clock() - requested_at)))

    def create_job(
        self, lines: Callable[[], Iterable[bytes]], options: Mapping[str, Any], idempotency_key: str
    ) -> Submission:
        """Stream a corpus as one job. A broken upload is sent again under the same key, so that it never runs twice."""
        reply = self._upload(lines, options, {"idempotency-key": idempotency_key}, waits_for_key)
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
            return self.post(JOBS, params=without_none(options), headers=upload_headers, content=body)

        return self.send_with_retries(send, busy, failures_allowed=UPLOAD_TRIES)

    def base64_results(self, job_id: str, start: int, stop: int) -> bytes:
        """The result lines of an index range, all in memory: keep the range small."""
        query = {"format": "ndjson", "encoding_format": "base64", "start": start, "stop": stop}
        return self.get(f"{JOBS}/{job_id}/results", query, self._results_headers("ndjson")).content

    def copy_results(
        self, job_id: str, start: int, stop: int, open_target: Callable[[], Callable[[bytes], object]], *, format: str
    ) -> None:
        """Pass the `ndjson` or `npy` results of an index range on as they arrive.

        `open_target` is called for a place to write to, and again when the connection broke and all of it is sent
        anew.
        """
        query: dict[str, Any] = {"format": format, "start": start, "stop": stop}
        headers = self._results_headers(format)

        def send() -> httpx.Response:
            write = open_target()
            with self.stream(f"{JOBS}/{job_id}/results", query, headers) as reply:
                if not reply.is_error:
                    for chunk in reply.iter_bytes():
                        write(chunk)
            return reply

        self.send_with_retries(send)

    def take_results(self, job_id: str, encoding: str, next_range: Callable[[], range], take: LineSink) -> None:
        """Pass the result lines of `next_range()` on as they arrive, each whole and with its line feed.

        Ends early once `take` returns False. `next_range` is called again when the connection broke: what has been
        taken is not sent anew.
        """
        headers = self._results_headers("ndjson")

        def send() -> httpx.Response:
            indexes = next_range()
            query = {"format": "ndjson", "encoding_format": encoding, "start": indexes.start, "stop": indexes.stop}
            with self.stream(f"{JOBS}/{job_id}/results", query, headers) as reply:
                if not reply.is_error:
                    partial_line = b""
                    for chunk in reply.iter_bytes():
                        *lines, partial_line = (partial_line + chunk).split(b"\n")
                        if not all(take(line + b"\n") for line in lines):
                            break
            return reply

        self.send_with_retries(send)

    def errors(self, job_id: str) -> Iterator[bytes]:
        """The error lines of a job as they arrive, one JSON object each."""
        partial_line = b""
        try:
            with self.stream(f"{JOBS}/{job_id}/errors") as reply:
                raise_for_error(reply)
                for chunk in reply.iter_bytes():
                    *lines, partial_line = (partial_line + chunk).split(b"\n")
                    yield from filter(None, lines)
        except httpx.TransportError as error:
            raise self.unreachable(error) from error
        if partial_line:
            yield partial_line

    def job_action(self, job_id: str, action: str, options: Mapping[str, Any] | None = None) -> Job:
        """Cancel, pause, resume or retry a job. Returns the job afterwards."""
        body = without_none(options or {})
        return decode(self.once("POST", f"{JOBS}/{job_id}/{action}", body or None), Job)

    def delete(self, job_id: str) -> None:
        """Remove a job and its results."""
        self.once("DELETE", f"{JOBS}/{job_id}")

    def readiness(self) -> tuple[int, bytes]:
        """Status and body of /readyz, requested once. Raises httpx.TransportError when nothing answers."""
        return self.fetch_page("/readyz")

    def _results_headers(self, format: str) -> dict[str, str]:
        # Floats hardly pack, and on one machine nothing is gained by packing text either.
        return {"accept-encoding": "identity"} if self.is_local or format == "npy" else {}


def connect(url: str | None, api_key: str | None) -> Client:
    """A client from the command's options, which hold the shell's environment already, else from the data directory."""
    return Client(*server_address(url, api_key))
