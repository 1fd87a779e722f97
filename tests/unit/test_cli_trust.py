"""Which server gets which key, and that no key is ever printed."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from cli.__main__ import exit_code_of
from cli.client.credentials import clean_key, is_loopback, parse_server_url, resolve_server
from cli.data_dir import DataDir
from cli.errors import CliError, UsageError
from cli.redaction import redact_keys
from tests.cli_fake_api import FakeApi

AWAY = "http://collector.example:8080"
HERE = "http://127.0.0.1:8080"
OURS = "em_0123456789abcdef_ourSecret"
THEIRS = "em_fedcba9876543210_theirSecret"


@pytest.fixture
def place(tmp_path: Path) -> DataDir:
    place = DataDir(tmp_path / ".embedmill")
    place.make()
    return place


def test_a_folder_does_not_decide_where_our_key_goes(place: DataDir) -> None:
    place.url_file.write_text(f"{AWAY}\n")
    place.key_file.write_text(THEIRS)
    with pytest.raises(UsageError, match=f"names {AWAY}.*say --url {AWAY}"):
        resolve_server(None, OURS, place)
    assert resolve_server(None, None, place) == (AWAY, THEIRS)
    assert resolve_server(None, THEIRS, place) == (AWAY, THEIRS)
    assert resolve_server(AWAY, OURS, place) == (AWAY, OURS)
    place.key_file.unlink()
    with pytest.raises(UsageError, match="say --url"):
        resolve_server(None, OURS, place)
    assert resolve_server(None, None, place) == (AWAY, None)


def test_this_machine_may_have_any_key(place: DataDir) -> None:
    place.url_file.write_text(HERE)
    place.key_file.write_text(THEIRS)
    assert resolve_server(None, OURS, place) == (HERE, OURS)
    assert resolve_server(None, None, place) == (HERE, THEIRS)


@pytest.mark.parametrize("linked", ["key", "url"])
def test_a_link_cannot_fetch_a_key_from_elsewhere(place: DataDir, tmp_path: Path, linked: str) -> None:
    other = tmp_path / "other"
    other.write_text(OURS if linked == "key" else AWAY)
    place.url_file.write_text(AWAY)
    place.key_file.write_text(THEIRS)
    (place.path / linked).unlink()
    (place.path / linked).symlink_to(other)
    with pytest.raises(UsageError, match="is a link"):
        resolve_server(None, None, place)


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost", True),
        ("http://[::1]:8080", True),
        ("http://127.0.0.1.example", False),
        ("http://localhost.example", False),
        ("http://10.0.0.1", False),
        ("http://0.0.0.0", False),
    ],
)
def test_what_counts_as_this_machine(url: str, is_local: bool) -> None:
    assert is_loopback(url) == is_local


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:1/v1", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        (" http://h:1/v1/embeddings\n", "http://h:1"),
        ("https://h/gateway/v1", "https://h/gateway"),
        ("http://h:1/docs", "http://h:1"),
        ("http://h:1/", "http://h:1"),
        ("http://v1/", "http://v1"),
    ],
)
def test_a_url_is_taken_as_it_is_copied(text: str, url: str) -> None:
    assert parse_server_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        "localhost:8080",
        "h",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://h\\x",
        "http://h/ x",
    ],
)
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(UsageError, match="not a URL"):
        parse_server_url(text)


@pytest.mark.parametrize("text", ["http://me:hunter2@h", "http://127.0.0.1:80@evil.example"])
def test_a_url_with_a_password_is_refused_without_it(text: str) -> None:
    with pytest.raises(UsageError, match="a user or a password") as refused:
        parse_server_url(text)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", [f"{OURS}\r", f"\n{OURS}\r\n", f" {OURS}\t"])
def test_blanks_around_a_key_are_no_part_of_it(text: str) -> None:
    assert clean_key(text, "x") == OURS


@pytest.mark.parametrize("text", [f"em\r{OURS}", f"{OURS}\0x", f"{OURS}é", f"{OURS} x", f"\x1b[31m{OURS}"])
def test_a_key_with_a_foreign_character_is_named_without_its_text(text: str) -> None:
    with pytest.raises(UsageError, match="a character that no key has") as refused:
        clean_key(text, "EMBEDMILL_API_KEY")
    assert "Secret" not in str(refused.value)


def test_the_last_net_quotes_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise ValueError(f"Illegal header value b'Bearer {OURS}\\r'")

    assert exit_code_of(fail) == 1
    assert "Secret" not in capsys.readouterr().err
    assert redact_keys("job_1 failed") == "job_1 failed"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_key_follows_a_redirect(status: int) -> None:
    api = FakeApi()
    api.faults = [httpx.Response(status, headers={"location": f"{AWAY}/v1/models?token=x"})]
    with pytest.raises(CliError, match=f"sends to '{AWAY}/v1/models'.*--url"):
        api.client().models()
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (httpx.Response(200, text="<html>router login</html>"), "nginx answered HTTP 200 and HTML"),
        (httpx.Response(404, json={"detail": "Not Found"}), "nginx answered HTTP 404 and JSON of another kind"),
        (httpx.Response(200, json={"data": [{"id": "gpt", "object": "model"}]}), "did not answer as embedmill does"),
        (httpx.Response(200, content=b""), "HTTP 200 and nothing"),
        (httpx.Response(500, text="oops"), "HTTP 500 and something else"),
    ],
)
def test_another_server_is_named_as_such(reply: httpx.Response, says: str) -> None:
    reply.headers["server"] = "nginx"
    api = FakeApi()
    api.faults = [reply]
    with pytest.raises(CliError, match=says):
        api.client().models()


def caused(error: httpx.TransportError, cause: OSError) -> httpx.TransportError:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "nothing listens there"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed"), "cannot be trusted"),
        (
            caused(httpx.ConnectError("[Errno -2]"), socket.gaierror(-2, "Name or service not known")),
            "name is not known",
        ),
        (caused(httpx.ConnectError(""), OSError(113, "No route to host")), "no way to that machine"),
        (httpx.ConnectTimeout("timed out"), "did not answer in time"),
        (httpx.ReadTimeout(""), "accepted the connection and did not answer"),
        (httpx.RemoteProtocolError("illegal status line: -ERR"), "does not answer as HTTP"),
        (httpx.LocalProtocolError(f"Illegal header value b'Bearer {OURS}'"), "could not be written"),
        (httpx.ProxyError("403 Forbidden"), "proxy of the environment"),
        (httpx.ReadError(OURS), "the connection broke"),
    ],
)
def test_why_a_server_cannot_be_reached_is_said_in_our_words(error: httpx.TransportError, says: str) -> None:
    api = FakeApi()
    api.faults = [error] * 20
    with pytest.raises(CliError, match=says) as failed:
        api.client(max_wait_s=0).models()
    assert "Secret" not in str(failed.value)


@pytest.mark.parametrize("closing", ["`", "'", ")", "]", "`.", "),"])
def test_what_closes_behind_a_key_stays(closing: str) -> None:
    assert redact_keys(f"`Bearer em_0123_secret{closing} and more") == f"`Bearer …{closing} and more"
    assert redact_keys(f"(em_0123_secret{closing} and more") == f"(em_0123_…{closing} and more"
