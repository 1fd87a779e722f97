"""While a provider cannot be used: the command line's waiting line, the sync answer and the log name account and cause.

Outages for real: a refused key, nothing that listens, a name that does not resolve, an HTML page.
"""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import orjson
import pytest
from rich.console import Console

from api.http import errors
from cli.client.types import Job
from cli.output.progress import BarProgress, JobProgress, LineProgress
from tests.api_process import free_port
from tests.gateway import JOBS, Gateway, close_gateway, error_of, open_gateway

CAUSES = {
    "key-refused": "refused the account's credential",
    "down": "connect",
    "no-dns": "resolve",
    "html": "HTML",
}
CONFIG = """
[providers.key-refused]
kind = "fake"
script = [{{ do = {{ status = 401 }} }}]
[providers.down]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
[providers.no-dns]
kind = "openai"
base_url = "http://no-such-host.invalid/v1"
[providers.html]
kind = "fake"
script = [{{ do = {{ reply = "html" }} }}]
""" + "".join(
    f'\n[models."{name}"]\ndimensions = 16\nroutes = [{{{{ provider = "{name}", model = "up" }}}}]\n' for name in CAUSES
)


@pytest.fixture
async def out(migrated: Path, tmp_path: Path) -> AsyncIterator[Gateway]:
    shutil.copyfile(migrated, tmp_path / "embedmill.db")
    gateway = await open_gateway(tmp_path, config=CONFIG.format(port=free_port()))
    errors.UPSTREAM_FAILURES = errors.UpstreamFailureLog()
    yield gateway
    await close_gateway(gateway)


async def waiting_job(gateway: Gateway, account: str) -> Job:
    job = await gateway.submit(["a text"], model=account)
    await gateway.run(job["id"])
    return msgspec.convert((await gateway.client.get(f"{JOBS}/{job['id']}")).json(), Job, strict=False)


def shown(kind: type[LineProgress] | type[BarProgress], job: Job) -> str:
    written = io.StringIO()
    console = Console(file=written, soft_wrap=True, force_terminal=kind is BarProgress, width=2000, no_color=True)
    progress: JobProgress = kind(console)
    with progress:
        progress.working(job)
        progress.working(job)
    return written.getvalue()


@pytest.mark.parametrize("account", CAUSES)
async def test_the_waiting_line_names_account_cause_advice_and_next_try(out: Gateway, account: str) -> None:
    job = await waiting_job(out, account)
    [line] = shown(LineProgress, job).splitlines()
    start, advice, next_try = line.split(" · ")
    assert start.startswith(f"waiting on {account} since ") and CAUSES[account] in start
    assert advice.startswith("→ ") and f"embedmill providers test {account}" in advice
    assert next_try.startswith("next try at ")
    assert "127.0.0.1" not in line and "no-such-host" not in line


@pytest.mark.parametrize("account", CAUSES)
async def test_a_terminal_shows_the_same_beside_its_bar(out: Gateway, account: str) -> None:
    said = shown(BarProgress, await waiting_job(out, account))
    assert f"waiting on {account} since" in said and CAUSES[account] in said and "next try at" in said
    assert f"waiting on provider {account}" in said


@pytest.mark.parametrize("account", CAUSES)
async def test_a_sync_call_that_fails_upstream_leaves_its_cause_in_the_log(
    out: Gateway, account: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        reply = await out.embed("a text", model=account)
    error = error_of(reply)
    assert reply.status_code in (502, 503) and CAUSES[account] in error["message"] and account in error["message"]
    lines = [record for record in caplog.records if record.getMessage().startswith("a sync request failed upstream")]
    assert [record.levelname for record in lines] == ["WARNING"]
    said = lines[0].getMessage() + orjson.dumps(lines[0].__dict__, default=str).decode()
    assert CAUSES[account] in lines[0].getMessage() and account in said
    assert lines[0].__dict__["request_id"] == reply.headers["x-request-id"]


async def test_the_second_failure_within_a_minute_is_counted_not_logged(
    out: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await out.embed("a text", model="html")
    lines = [record for record in caplog.records if record.getMessage().startswith("a sync request failed upstream")]
    assert 1 <= len(lines) <= 2
