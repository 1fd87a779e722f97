"""Memory of the API does not grow with a file, whichever way its bytes go, nor with clients that stop reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.api_process import ApiProcess
from tests.s3_server import s3_server
from tests.waiting import wait_until

MIB = 1024 * 1024
SMALL, LARGE = 40 * MIB, 240 * MIB
ALLOWED = 24 * MIB
PIECE = b'{"custom_id":"a"}\n' * 3_641  # 64 KiB
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
END = b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n--b--\r\n'


class Peak:
    """The most that a process has resident within the block."""

    def __init__(self, api: ApiProcess) -> None:
        self._api = api
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.bytes = 0

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self.bytes = max(self.bytes, self._api.rss_bytes())

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def form(size: int) -> Iterator[bytes]:
    yield HEAD
    for _ in range(size // len(PIECE)):
        yield PIECE
    yield END


@pytest.mark.parametrize("where", ["local", "s3"])
def test_memory_is_flat(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with ExitStack() as stack:
        url = ""
        if where == "s3":
            server = stack.enter_context(s3_server())
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            url = server.url()
        api = stack.enter_context(ApiProcess(migrated, tmp_path, objects_url=url))
        headers = {"authorization": f"Bearer {api.key}"}
        client = stack.enter_context(httpx.Client(base_url=api.url, headers=headers, timeout=110.0))
        media_type = {"content-type": "multipart/form-data; boundary=b"}
        peaks, ids = [], []
        for size in (SMALL, LARGE):
            with Peak(api) as peak:
                file = client.post("/v1/files", content=form(size), headers=media_type).raise_for_status().json()
            assert file["bytes"] == size // len(PIECE) * len(PIECE)
            ids.append(file["id"])
            with Peak(api) as reading, client.stream("GET", f"/v1/files/{file['id']}/content") as reply:
                assert sum(map(len, reply.iter_raw())) == file["bytes"]
            peaks.append((peak.bytes, reading.bytes))
        (small_write, small_read), (large_write, large_read) = peaks
        assert large_write - small_write < ALLOWED and large_read - small_read < ALLOWED, peaks

        before = api.rss_bytes()
        for _ in range(12):  # they ask for all of it, and read nothing
            connection = stack.enter_context(api.connect(receive_bytes=4096))
            connection.sendall(api.head("GET", f"/v1/files/{ids[1]}/content"))
        wait_until(lambda: api.answers(), 10.0, what="an answer beside them")
        assert client.get(f"/v1/files/{ids[0]}").status_code == 200
        assert api.rss_bytes() - before < ALLOWED
