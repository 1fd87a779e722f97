"""One system with two tenants: the attacker's jobs and script are laid out, and its leavings are cleared away."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from tests.influence.acts_names import hostile_script
from tests.system.stack import MODEL, Stack

JOBS = "/v1/embeddings/jobs"
FINISHED_INPUTS = 8_000
REFUSED_LINES = 1_000_000
RUNNING = ("validating", "in_progress", "paused", "cancelling")


class Field:
    """The attacker is of the project `attacker`, the victim the stack's own caller."""

    def __init__(self, stack: Stack, *, latency_ms: float) -> None:
        self.stack = stack
        key = orjson.loads(stack.processes.run("keys", "create", "--project", "attacker", "--json"))["key"]
        self._client = httpx.Client(
            base_url=stack.url, headers={"authorization": f"Bearer {key}"}, timeout=60, trust_env=False
        )
        finished = self._upload(b"\n".join(b'"result %d"' % number for number in range(FINISHED_INPUTS)))
        refused = self._upload(b'"a"\n' + b"\n" * REFUSED_LINES + b'"b"\n')
        for job_id in (finished, refused):
            self._await_end(job_id)
        self._kept = {finished, refused}
        stack.script(*hostile_script(), {"do": {"latency_ms": latency_ms}})
        address = urlsplit(stack.url)
        self.target: dict[str, Any] = {
            "host": address.hostname,
            "port": address.port,
            "key": key,
            "model": MODEL,
            "job_id": finished,
            "refused_job_id": refused,
        }

    def close(self) -> None:
        self._client.close()

    def clear(self) -> None:
        """End what the attacker's jobs still do."""
        for status in RUNNING:
            while data := self._client.get(JOBS, params={"limit": 100, "status": status}).json()["data"]:
                for job in data:
                    self._client.delete(f"{JOBS}/{job['id']}")

    def route_faults(self) -> list[str]:
        """What is wrong with the route that both tenants use, as database and metrics tell it."""
        found = [f"outage {row}" for row in self.stack.query("SELECT account, code, message FROM route_outages")]
        lines = self._client.get("/metrics").text.splitlines()
        bad = ("embedmill_route_quarantined", "embedmill_limiter_rate_limited_total", "embedmill_usage_dropped")
        return found + [
            line for line in lines if line.startswith(bad) and float(line.split()[-1]) and "_created" not in line
        ]

    def _upload(self, body: bytes) -> str:
        headers = {"content-type": "application/x-ndjson"}
        reply = self._client.post(JOBS, params={"model": MODEL}, content=body, headers=headers)
        assert reply.is_success, reply.text
        return str(reply.json()["id"])

    def _await_end(self, job_id: str) -> None:
        seen = ""
        while True:
            with suppress(httpx.TransportError):
                job = self._client.get(f"{JOBS}/{job_id}", params={"wait": 10}, headers={"if-none-match": seen})
                if job.status_code == httpx.codes.OK and job.json()["finished_at"]:
                    return
                seen = job.headers.get("etag", "")
