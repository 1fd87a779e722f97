"""A body that is said to be something else, or nothing: the error names the header to send."""

from __future__ import annotations

import shutil
import subprocess

import orjson
import pytest

from tests.contract.conftest import Server
from tests.gateway import JOBS, Gateway, error_of

SYNC = "/v1/embeddings"
ASKED = orjson.dumps({"model": "tiny", "input": ["a", "b"]})
HEADER = "Content-Type: application/json"
leaving_nothing = pytest.mark.asyncio(loop_scope="session")


@leaving_nothing
@pytest.mark.parametrize("path", [SYNC, JOBS])
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/xml"])
async def test_json_under_another_name_is_told_the_header(shared_gateway: Gateway, path: str, kind: str) -> None:
    reply = await shared_gateway.client.post(path, content=ASKED, headers={"content-type": kind})
    error = error_of(reply)
    assert (reply.status_code, error["param"], error["code"]) == (415, "content-type", "unsupported_media_type")
    assert HEADER in error["message"]
    assert ("curl" in error["message"]) == ("urlencoded" in kind)


@leaving_nothing
async def test_text_that_is_json_is_told_the_header(shared_gateway: Gateway) -> None:
    """As a streamed corpus it would be one text, the JSON itself: the model that is missing tells."""
    reply = await shared_gateway.client.post(SYNC, content=ASKED, headers={"content-type": "text/plain"})
    assert reply.status_code == 415 and HEADER in error_of(reply)["message"]
    for kind in ("text/plain", "application/x-ndjson"):
        reply = await shared_gateway.client.post(JOBS, content=ASKED, headers={"content-type": kind})
        error = error_of(reply)
        assert (reply.status_code, error["param"], error["code"]) == (400, "model", "missing_required_parameter")
        assert HEADER in error["message"] and "?model=" in error["message"]


@leaving_nothing
async def test_a_stream_without_the_header_is_told_which_one(shared_gateway: Gateway) -> None:
    """It said "Unknown parameter: 'model'"."""
    reply = await shared_gateway.client.post(JOBS, params={"model": "tiny"}, content=b'"a"\n"b"\n')
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (415, "content-type")
    assert "Content-Type: application/x-ndjson" in error["message"] and "text/plain" in error["message"]


@leaving_nothing
@pytest.mark.parametrize(("path", "status"), [(SYNC, 200), (JOBS, 202)])
async def test_json_without_the_header_is_taken(shared_gateway: Gateway, path: str, status: int) -> None:
    assert (await shared_gateway.client.post(path, content=ASKED)).status_code == status


@leaving_nothing
@pytest.mark.parametrize("path", [SYNC, JOBS, f"{JOBS}/job_x/resume"])
@pytest.mark.parametrize("charset", ["latin-1", '"ISO-8859-1"', "windows-1252", "UTF-16LE", "utf-7", "no-such"])
async def test_a_charset_other_than_utf8_is_refused_in_every_json_body(
    shared_gateway: Gateway, path: str, charset: str
) -> None:
    headers = {"content-type": f"application/json; Charset={charset}"}
    reply = await shared_gateway.client.post(path, content=ASKED, headers=headers)
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (415, "content-type")
    assert charset.strip('"') in error["message"] and "as UTF-8" in error["message"]


@leaving_nothing
@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl", "text/plain"])
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_a_charset_other_than_utf8_is_refused_in_every_stream(
    shared_gateway: Gateway, kind: str, encoding: str
) -> None:
    headers = {"content-type": f"{kind}; boundary=x; charset=latin-1", "content-encoding": encoding}
    reply = await shared_gateway.client.post(f"{JOBS}?model=tiny", content=b'"a"\n', headers=headers)
    assert (reply.status_code, error_of(reply)["param"]) == (415, "content-type")


@leaving_nothing
@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", ""])
async def test_utf8_by_any_name_is_taken(shared_gateway: Gateway, charset: str) -> None:
    for path, kind in ((SYNC, "application/json"), (JOBS, "application/json"), (f"{JOBS}?model=tiny", "text/plain")):
        headers = {"content-type": f"{kind};charset={charset}"}
        assert (await shared_gateway.client.post(path, content=ASKED, headers=headers)).status_code in (200, 202)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("options", [["-d", ASKED.decode()], ["--data-binary", ASKED.decode()], ["-F", "input=a"]])
@pytest.mark.parametrize("path", [SYNC, JOBS])
def test_curl_without_the_header(server: Server, path: str, options: list[str]) -> None:
    said = subprocess.run(
        ["curl", "-sS", server.url + path, "-H", f"Authorization: Bearer {server.key}", *options],
        capture_output=True,
        check=True,
        timeout=60,
    )
    error = orjson.loads(said.stdout)["error"]
    assert error["code"] == "unsupported_media_type" and HEADER in error["message"]
