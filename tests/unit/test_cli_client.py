"""The client's manners: what it repeats, how long it waits, and how it says what went wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import pytest

from cli.client.api_client import Client, connect
from cli.errors import CliError, UsageError
from tests.cli_fake_api import JOB_ID, FakeApi


def create(api: FakeApi, client: Client) -> None:
    client.create_job(lambda: iter([b'"a"\n', b'"b"\n']), {"model": "tiny", "dimensions": None}, "key-of-this-run")


def test_reads_are_repeated_and_retry_after_is_honoured() -> None:
    api = FakeApi()
    api.faults = [
        httpx.Response(429, headers={"retry-after": "7"}),
        httpx.Response(503, headers={"retry-after": "3600"}),
        httpx.ReadError("reset"),
    ]
    assert [model.id for model in api.client().models()] == ["tiny"]
    assert api.sleeps[:2] == [7.0, 30.0]
    assert 0 < api.sleeps[2] <= 5.0


def test_a_server_that_was_never_there_is_hardly_waited_for() -> None:
    api = FakeApi()
    api.faults = [httpx.ConnectError("connection refused")] * 99
    with pytest.raises(CliError, match=r"no answer from http://127.0.0.1:1: nothing listens there \(.*embedmill up"):
        api.client().models()
    assert 4.0 <= sum(api.sleeps) < 9.0


def test_a_server_that_restarts_is_waited_for() -> None:
    api = FakeApi()
    client = api.client()
    client.models()
    api.faults = [httpx.ConnectError("refused")] * 5
    assert client.models()
    assert len(api.sleeps) == 5


def test_patience_ends() -> None:
    api = FakeApi()
    api.faults = [httpx.Response(503, json={"error": {"message": "no database", "code": "storage_unavailable"}})] * 99
    with pytest.raises(CliError, match=r"no database \[HTTP 503 storage_unavailable\]"):
        api.client().models()
    assert 90.0 <= sum(api.sleeps) < 96.0
    api.faults = [httpx.ReadError("reset")]
    with pytest.raises(CliError, match="no answer"):
        api.client(max_wait_s=0.0).models()


def test_an_error_names_the_request() -> None:
    api = FakeApi()
    api.faults = [
        httpx.Response(
            401,
            json={"error": {"message": "bad key", "type": "x", "param": None, "code": "invalid_api_key"}},
            headers={"x-request-id": "req_1"},
        )
    ]
    with pytest.raises(CliError, match=r"^bad key \[HTTP 401 invalid_api_key, req_1\] \(give a key"):
        api.client().models()


def test_something_else_than_embedmill_is_recognised() -> None:
    api = FakeApi()
    api.faults = [httpx.Response(200, text="<html>router login</html>")]
    with pytest.raises(CliError, match=r"is --url right\?"):
        api.client().models()


def test_a_broken_upload_is_sent_again_whole_under_the_same_key() -> None:
    api = FakeApi()
    api.faults = [
        httpx.WriteError("broken pipe"),
        httpx.Response(503, headers={"retry-after": "1"}),
        # The key of an upload that died with its server is free again when a lease is over.
        *[httpx.Response(409, headers={"x-should-retry": "true", "retry-after": "20"})] * 3,
    ]
    create(api, api.client())
    assert api.bodies == [b'"a"\n"b"\n']
    assert {request.headers["idempotency-key"] for request in api.requests} == {"key-of-this-run"}
    assert len(api.requests) == 6
    assert api.requests[0].url.query == b"model=tiny"  # what was not given is not sent


@pytest.mark.parametrize(
    "refusal",
    [httpx.Response(404), httpx.Response(422), httpx.Response(409, headers={"x-should-retry": "false"})],
)
def test_a_refused_upload_is_not_repeated(refusal: httpx.Response) -> None:
    api = FakeApi()
    api.faults = [refusal]
    with pytest.raises(CliError):
        create(api, api.client())
    assert len(api.requests) == 1


def test_an_upload_that_breaks_four_times_is_given_up() -> None:
    api = FakeApi()
    api.on_request = lambda _request: api.sleeps.append(2.0)  # the clock that the client reads: some of it was sent
    api.faults = [httpx.WriteError("broken pipe")] * 9
    with pytest.raises(CliError, match="no answer"):
        create(api, api.client())
    assert len(api.requests) == 4


def test_an_upload_waits_for_a_server_that_restarts() -> None:
    api = FakeApi()
    client = api.client()
    client.models()
    api.faults = [httpx.WriteError("broken pipe"), *[httpx.ConnectError("refused")] * 20]
    create(api, client)
    assert api.bodies == [b'"a"\n"b"\n']
    assert len(api.sleeps) == 21


def test_a_connection_that_closes_at_once_is_not_an_upload_that_breaks() -> None:
    """A proxy takes the connection and finds nobody behind it, for as long as the server restarts."""
    api = FakeApi()
    client = api.client()
    client.models()
    api.faults = [httpx.RemoteProtocolError("Server disconnected without sending a response.")] * 20
    create(api, client)
    assert api.bodies == [b'"a"\n"b"\n']


def test_a_remote_server_gets_gzip() -> None:
    api = FakeApi()
    with Client("https://embeddings.example", None, transport=httpx.MockTransport(api.answer)) as client:
        api.bodies = [b'"a"\n"b"\n']
        create(api, client)
    assert api.requests[0].headers["content-encoding"] == "gzip"
    assert gzip.decompress(api.bodies[-1]) == b'"a"\n"b"\n'
    assert "authorization" not in api.requests[0].headers


def test_polling_asks_for_changes_only() -> None:
    api = FakeApi()
    client = api.client()
    create(api, client)
    assert [job.status for job in client.changes(JOB_ID)] == ["in_progress", "completed"]
    first, second, third = api.requests[1:]
    assert "if-none-match" not in first.headers
    assert "wait" not in first.url.params
    for request in (second, third):
        assert request.headers["if-none-match"] == '"1"'
        assert request.url.params["wait"] == "20"


def test_error_lines_end_at_the_line_feed_only() -> None:
    api = FakeApi()
    api.faults = [httpx.Response(200, content='{"id":"a\u2028b"}\n{"id":2}'.encode())]
    assert list(api.client().errors(JOB_ID)) == ['{"id":"a\u2028b"}'.encode(), b'{"id":2}']


def test_where_the_server_and_the_key_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDMILL_DATA_DIR", str(tmp_path))
    with pytest.raises(CliError, match=r"no server is known.*embedmill up"):
        connect(None, None)
    (tmp_path / "url").write_text("http://127.0.0.1:8123\n")
    assert connect(None, None).url == "http://127.0.0.1:8123"
    assert connect("http://other:1/", None).url == "http://other:1"
    for wrong in ("localhost:8080", "ftp://x", "http://"):
        with pytest.raises(UsageError, match="is not a URL"):
            connect(wrong, None)


def test_steering_a_job_sends_what_was_given_and_nothing_else() -> None:
    api = FakeApi()
    api.bodies = [b'"a"\n']
    api.faults = [
        httpx.Response(200, json=api.job(status, done=0)) for status in ("paused", "in_progress", "in_progress")
    ]
    client = api.client()
    assert client.job_action(JOB_ID, "pause").status == "paused"
    client.job_action(JOB_ID, "resume", {"max_cost_usd": None})
    client.job_action(JOB_ID, "resume", {"max_cost_usd": "2.50"})
    assert [(request.url.path.rpartition("/")[2], request.content) for request in api.requests] == [
        ("pause", b""), ("resume", b""), ("resume", b'{"max_cost_usd":"2.50"}')
    ]  # fmt: skip
