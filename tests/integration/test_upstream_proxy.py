"""Upstream calls through an HTTP proxy: tunnels for https, absolute URLs for http, credentials, and what fails how."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.upstream.http import HttpTransport
from models.errors import UpstreamError, UpstreamMisconfigured, UpstreamUnavailable
from tests.integration.wire_servers import CALL, PATIENCE_S, post, read_request, replying, run_python, serving

pytestmark = pytest.mark.asyncio


class SmallProxy:
    """An HTTP proxy: CONNECT tunnels and absolute URLs, with a user and a password."""

    def __init__(self, user: str = "", password: str = "", refuse: bytes = b"") -> None:
        self.expected = b64encode(f"{user}:{password}".encode()).decode() if user else None
        self.refuse = refuse  # the status line with which it refuses everything
        self.heads: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if self.expected and f"proxy-authorization: basic {self.expected}".lower() not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        if self.refuse:
            writer.write(self.refuse + b"\r\nContent-Length: 0\r\n\r\n")
            return await writer.drain()
        method, target, _ = head.split(" ", 2)
        to = urlsplit(target if "://" in target else f"//{target}")
        upstream_reader, upstream_writer = await asyncio.open_connection(to.hostname, to.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream_writer.write(head.replace(target, to.path or "/", 1).encode())

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()

        pumps = [
            asyncio.ensure_future(pump(reader, upstream_writer)),
            asyncio.ensure_future(pump(upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in pumps:
                each.cancel()
            upstream_writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def with_credential(url: str) -> str:
    return url.replace("http://", "http://us%40er:s3cret@")


@pytest.mark.parametrize("named_by", ["wire", "request"])
async def test_a_proxy_with_a_credential(named_by: str) -> None:
    proxy = SmallProxy("us@er", "s3cret")
    async with serving(replying(OK)) as url, serving(proxy) as proxy_url:
        proxy_url = with_credential(proxy_url)
        wire = HttpTransport(proxy=proxy_url if named_by == "wire" else "http://127.0.0.1:9")
        request = post(url) if named_by == "wire" else replace(post(url), proxy=proxy_url)
        reply = await wire.send(request, timeout_s=PATIENCE_S, max_reply_bytes=100)
        assert reply.body == b"ok" and proxy.heads[0].startswith(f"POST {url}")
        direct = await wire.send(replace(request, proxy=""), timeout_s=PATIENCE_S, max_reply_bytes=100)
        assert direct.body == b"ok" and len(proxy.heads) == 1
        assert "s3cret" not in repr(replace(request, proxy=proxy_url))
        await wire.close()


async def test_https_goes_through_a_tunnel_and_its_credential_stays_with_the_proxy(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    files = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate)
    command = ["openssl", "req", "-x509", *map(str, files), *subject]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True, capture_output=True))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heads: list[str] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(OK)
        await writer.drain()

    proxy = SmallProxy("us@er", "s3cret")
    server = await asyncio.start_server(upstream, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with serving(proxy) as proxy_url:
        done = await asyncio.to_thread(
            run_python,
            CALL.replace("HttpTransport()", "HttpTransport(proxy=os.environ['THE_PROXY'])"),
            UPSTREAM_URL=f"https://127.0.0.1:{port}/v1",
            THE_PROXY=with_credential(proxy_url),
            SSL_CERT_FILE=str(certificate),
        )
    server.close()
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{port} ")
    assert "proxy-authorization" not in heads[0].lower() and len(heads) == 1


@pytest.mark.parametrize(
    ("scheme", "proxy", "kind"),
    [
        ("https", SmallProxy("us@er", "other"), UpstreamMisconfigured),
        ("https", SmallProxy(refuse=b"HTTP/1.1 403 Forbidden"), UpstreamUnavailable),
        ("https", SmallProxy(refuse=b"HTTP/1.1 502 Bad Gateway"), UpstreamUnavailable),
    ],
)
async def test_a_proxy_that_refuses_is_told_from_an_upstream_that_does(
    scheme: str, proxy: SmallProxy, kind: type[UpstreamError]
) -> None:
    async with serving(proxy) as proxy_url:
        request = replace(post(f"{scheme}://127.0.0.1:9/v1"), proxy=with_credential(proxy_url))
        wire = HttpTransport()
        with pytest.raises(kind) as caught:
            await wire.send(request, timeout_s=PATIENCE_S, max_reply_bytes=100)
        await wire.close()
    assert not caught.value.sent and "proxy" in caught.value.message and caught.value.advice
    assert "s3cret" not in str(caught.value) + caught.value.advice


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_away(scheme: str) -> None:
    wire = HttpTransport()
    request = replace(post(f"{scheme}://127.0.0.1:9/v1"), proxy="http://us:s3cret@127.0.0.1:9")
    with pytest.raises(UpstreamUnavailable) as caught:
        await wire.send(request, timeout_s=PATIENCE_S, max_reply_bytes=100)
    assert not caught.value.sent and "proxy" in caught.value.message
    await wire.close()
