"""Answers are compressed on request where it pays: zstd before gzip, by the caller's q-values, off the event loop."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import zstandard
from starlette.requests import Request

from api.http.compression import MIN_BYTES, chosen_coding, compressed_stream
from tests.gateway import CONFIG, JOBS, Gateway, close_gateway, open_gateway

MANY = [f"text {number}" for number in range(2_048)]


def asking(header: str | None) -> Request:
    headers = [] if header is None else [(b"accept-encoding", header.encode())]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": headers})


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("zstd", "zstd"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *", "gzip"),
        ("identity;q=0, gzip", "gzip"),
        ("identity;q=0, *;q=0.1", "zstd"),
        ("GZIP ; q=0.3", "gzip"),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=0, zstd;q=0", None),
        ("*;q=0", None),
        ("deflate, br", None),
        ("gzip;q=loud", None),
        ("gzip;q=7", None),
        (",,;", None),
        ("", None),
        (None, None),
    ],
)
def test_the_coding_is_the_callers_choice(header: str | None, coding: str | None) -> None:
    assert chosen_coding(asking(header)) == coding


def unpacked(reply: httpx.Response, raw: bytes) -> bytes:
    coding = reply.headers["content-encoding"]
    if coding == "gzip":
        return gzip.decompress(raw)
    return zstandard.ZstdDecompressor().decompressobj().decompress(raw)


async def raw_reply(
    gateway: Gateway, method: str, path: str, coding: str, **options: object
) -> tuple[httpx.Response, bytes]:
    headers = {"accept-encoding": coding, **options.pop("headers", {})}  # type: ignore[dict-item]
    async with gateway.client.stream(method, path, headers=headers, **options) as reply:  # type: ignore[arg-type]
        return reply, b"".join([chunk async for chunk in reply.aiter_raw()])


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
async def test_a_large_answer_is_compressed_and_the_same(data_dir: Path, coding: str) -> None:
    gateway = await open_gateway(
        data_dir,
        config=CONFIG.replace("[models.tiny]\ndimensions = 16", "[models.tiny]\ndimensions = 64").replace(
            '"1..16"', '"1..64"'
        ),
    )
    asked = {"model": "tiny", "input": MANY, "encoding_format": "float"}
    plain, body = await raw_reply(gateway, "POST", "/v1/embeddings", "identity", json=asked)
    packed, raw = await raw_reply(gateway, "POST", "/v1/embeddings", coding, json=asked)
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == (coding, "accept-encoding")
    assert plain.headers["vary"] == "accept-encoding" and len(raw) < 0.7 * len(body)
    assert int(packed.headers["content-length"]) == len(raw)
    unpacked_body = unpacked(packed, raw)
    assert len(unpacked_body) > MIN_BYTES and unpacked_body[:1000] == body[:1000]
    await close_gateway(gateway)


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
async def test_small_answers_stay_as_they_are_unless_the_caller_takes_no_such(gateway: Gateway, coding: str) -> None:
    reply, _ = await raw_reply(gateway, "GET", "/v1/models", coding)
    assert "content-encoding" not in reply.headers
    reply, raw = await raw_reply(gateway, "GET", "/v1/models", f"{coding}, identity;q=0")
    assert reply.headers["content-encoding"] == coding and b'"object":"list"' in unpacked(reply, raw)


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
async def test_a_download_is_compressed_as_it_streams(gateway: Gateway, coding: str) -> None:
    job = await gateway.run((await gateway.submit(MANY[:200]))["id"])
    path = f"{JOBS}/{job['id']}/results"
    plain, body = await raw_reply(gateway, "GET", path, "identity")
    assert plain.headers["vary"] == "accept-encoding" and "content-encoding" not in plain.headers
    for ranged in ({}, {"range": "bytes=0-9"}):  # ranges of bytes are not offered: the whole, in either form
        packed, raw = await raw_reply(gateway, "GET", path, coding, headers=ranged)
        assert (packed.status_code, packed.headers["content-encoding"]) == (200, coding)
        assert "content-range" not in packed.headers and unpacked(packed, raw) == body
    part, raw = await raw_reply(gateway, "GET", path, coding, params={"start": 3, "stop": 5})
    assert unpacked(part, raw).count(b"\n") == 2


@pytest.mark.parametrize("query", [{"format": "npy"}, {"encoding_format": "base64"}])
async def test_what_does_not_shrink_is_left_alone(gateway: Gateway, query: dict[str, str]) -> None:
    job = await gateway.run((await gateway.submit(MANY[:200]))["id"])
    reply, _ = await raw_reply(gateway, "GET", f"{JOBS}/{job['id']}/results", "zstd, gzip", params=query)
    assert "content-encoding" not in reply.headers


async def test_a_poll_keeps_its_etag_whatever_the_caller_accepts(gateway: Gateway) -> None:
    job = await gateway.submit(["a"])
    path = f"{JOBS}/{job['id']}"
    first, _ = await raw_reply(gateway, "GET", path, "zstd")
    again, raw = await raw_reply(gateway, "GET", path, "gzip", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, raw) == (304, b"")


async def test_pieces_of_a_stream_arrive_one_by_one() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"line %d\n" % number

    for coding in ("zstd", "gzip"):
        unpacker = zstandard.ZstdDecompressor().decompressobj() if coding == "zstd" else zlib.decompressobj(31)
        got = [unpacker.decompress(chunk) async for chunk in compressed_stream(coding, pieces())]
        assert got[:3] == [b"line 0\n", b"line 1\n", b"line 2\n"]
