"""kill -9 around each step of an upload: a file is whole or not there, and the sweep leaves neither rows nor bytes.

Real API processes on both object stores. The sweep that cleans up is another process's: that of the test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from engine.config.settings import Settings
from engine.files.parts import object_key
from engine.jobs.composition import sweep_of
from engine.runtime import Runtime
from models.file import File, FilePart, Upload
from tests.api_process import ROOT, ApiProcess
from tests.s3_server import S3Server, s3_server
from tests.waiting import until, wait_until

LEASE_S = 1.0
CONTENT = b'{"custom_id":"a"}\n' * 600_000  # 10 MB: several segments
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="%b"; filename="a.jsonl"\r\n\r\n'
END = b"\r\n--b--\r\n"
SWEEP = """
import asyncio
from engine.config.settings import Settings
from engine.jobs.composition import sweep_of
from engine.runtime import Runtime
asyncio.run(sweep_of(Runtime.open(Settings.from_environment())).run())
"""

pytestmark = pytest.mark.fault(55)


@dataclass(slots=True)
class Place:
    """An API process, its database, and an object store of its own."""

    api: ApiProcess
    folder: Path
    url: str
    server: S3Server | None

    def objects(self) -> list[str]:
        """The keys of all that is in the store, also of what is there only in part."""
        if self.server is not None:
            return sorted({key.split("/", 1)[1].rpartition("/")[0] for key in self.server.all_keys()})
        root = self.folder / "objects"
        return sorted(
            str(path.relative_to(root)).removesuffix(".partial") for path in root.rglob("*") if path.is_file()
        )

    def run(self, use: Callable[[Runtime], Awaitable[None]]) -> None:
        """Something that another process on the same database does."""

        async def run() -> None:
            config = str(self.folder / "embedmill.toml")
            settings = Settings(data_dir=self.folder, config=config, lease_s=LEASE_S, objects_url=self.url)
            runtime = Runtime.open(settings)
            try:
                await use(runtime)
            finally:
                await runtime.close()

        asyncio.run(run())

    def sweep_until_only(self, *file_ids: str) -> None:
        """Sweep until there are these files and all that belongs to them, and nothing else."""

        async def sweep(runtime: Runtime) -> None:
            async def is_clean() -> bool:
                await sweep_of(runtime).run()
                parts = await rows(runtime, FilePart)
                files = [file.id for file in await rows(runtime, File)]
                is_owned = {part.owner_id for part in parts} == set(file_ids)
                keys = sorted(object_key(part.id) for part in parts)
                return sorted(files) == sorted(file_ids) and is_owned and keys == self.objects()

            await until(is_clean, 30.0, every_s=0.1, what="a store without orphans")

        self.run(sweep)

    def post(
        self, path: str = "/v1/files", *, field: bytes = b"file", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Send CONTENT as a file, or as the part of an upload."""
        body = (PURPOSE if field == b"file" else b"") + FILE % field + CONTENT + END
        headers = {"content-type": "multipart/form-data; boundary=b", **self.key, **(headers or {})}
        return httpx.post(self.api.url + path, content=body, headers=headers, timeout=60.0)

    @property
    def key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api.key}"}

    def content(self, file_id: str) -> bytes:
        return httpx.get(f"{self.api.url}/v1/files/{file_id}/content", headers=self.key, timeout=60.0).content

    def kill_in_mid_body(self, path: str, *, field: bytes) -> None:
        """Send half of a form, wait until bytes of it are in the store, and kill the API."""
        half = (PURPOSE if field == b"file" else b"") + FILE % field + CONTENT[: len(CONTENT) // 2]
        before = self.objects()
        with self.api.connect() as connection:
            fields = ("Content-Type: multipart/form-data; boundary=b", f"Content-Length: {2 * len(half)}")
            connection.sendall(self.api.head("POST", path, *fields) + half)
            wait_until(lambda: self.objects() != before, 30.0, what="the first bytes in the store")
            self.api.process.send_signal(signal.SIGKILL)
            self.api.process.wait()


async def rows(runtime: Runtime, table: Any) -> list[Any]:
    async with runtime.database.read() as connection:
        return list((await connection.execute(select(*table.__table__.columns))).all())


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def make_place(
    request: pytest.FixtureRequest, migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Place]:
    def make(failpoint: str = "") -> Place:
        server, url = None, ""
        if request.param == "s3":
            server = request.getfixturevalue("s3")
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            for key in server.all_keys():
                server.client().delete_object(Bucket=server.bucket, Key=key)
            url = server.url()
        rule = f"{failpoint}=kill,times=1,shared={tmp_path}" if failpoint else ""
        api = ApiProcess(migrated, tmp_path, lease_s=LEASE_S, objects_url=url, failpoints=rule)
        return Place(api, tmp_path, url, server)

    return make


@pytest.mark.parametrize(
    ("place_name", "header"),
    [
        ("after_part_insert", "idempotency-key"),
        ("after_part_write", "idempotency-key"),
        ("during_file_commit", "idempotency-key"),
        ("after_file_commit", "idempotency-key"),
        ("after_file_commit", "x-stainless-retry-count"),
    ],
)
def test_a_file_whose_upload_was_killed_is_whole_or_not_there(
    make_place: Callable[[str], Place], place_name: str, header: str
) -> None:
    place = make_place(place_name)
    first, second = ("k", "k") if header == "idempotency-key" else ("0", "1")
    with place.api, pytest.raises(httpx.TransportError):
        place.post(headers={header: first})
    with place.api:
        reply = place.post(headers={header: second})
        assert reply.status_code == 200, reply.text
        is_replay = place_name == "after_file_commit"
        assert (reply.headers.get("idempotent-replayed") == "true") is is_replay
        file_id = reply.json()["id"]
        listed = httpx.get(f"{place.api.url}/v1/files", headers=place.key).json()["data"]
        assert [file["id"] for file in listed] == [file_id]
        place.sweep_until_only(file_id)
        assert place.content(file_id) == CONTENT


def test_a_kill_within_the_body_leaves_nothing(make_place: Callable[[], Place]) -> None:
    place = make_place()
    with place.api:
        place.kill_in_mid_body("/v1/files", field=b"file")
    assert place.objects() != []
    place.sweep_until_only()
    assert place.objects() == []


def test_a_kill_within_a_part_leaves_the_upload_and_its_other_parts(make_place: Callable[[], Place]) -> None:
    place = make_place()
    body = {"bytes": len(CONTENT), "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    with place.api:
        upload = httpx.post(f"{place.api.url}/v1/uploads", json=body, headers=place.key).json()["id"]
        part_id = place.post(f"/v1/uploads/{upload}/parts", field=b"data").json()["id"]
        place.kill_in_mid_body(f"/v1/uploads/{upload}/parts", field=b"data")
    with place.api:
        complete = f"{place.api.url}/v1/uploads/{upload}/complete"
        reply = httpx.post(complete, json={"part_ids": [part_id]}, headers=place.key, timeout=60.0).json()
        assert reply["status"] == "completed"
        place.sweep_until_only(reply["file"]["id"])
        assert place.content(reply["file"]["id"]) == CONTENT


def test_an_upload_that_nobody_completes_expires_with_its_parts(make_place: Callable[[], Place]) -> None:
    place = make_place()
    body = {"bytes": len(CONTENT), "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    with place.api:
        upload = httpx.post(f"{place.api.url}/v1/uploads", json=body, headers=place.key).json()["id"]
        place.post(f"/v1/uploads/{upload}/parts", field=b"data").raise_for_status()
        place.kill_in_mid_body(f"/v1/uploads/{upload}/parts", field=b"data")

    async def let_time_pass(runtime: Runtime) -> None:
        async with runtime.database.write() as connection:
            await connection.execute(update(Upload).values(expires_at=Upload.expires_at - 3601.0))

    place.run(let_time_pass)
    place.sweep_until_only()
    assert place.objects() == []


def test_a_completion_that_was_killed_is_done_once(make_place: Callable[[str], Place]) -> None:
    place = make_place("after_file_commit")
    body = {"bytes": len(CONTENT), "filename": "a.jsonl", "mime_type": "text/plain", "purpose": "batch"}
    with place.api:
        upload = httpx.post(f"{place.api.url}/v1/uploads", json=body, headers=place.key).json()["id"]
        part_id = place.post(f"/v1/uploads/{upload}/parts", field=b"data").json()["id"]
        complete = f"{place.api.url}/v1/uploads/{upload}/complete"
        with pytest.raises(httpx.TransportError):
            httpx.post(complete, json={"part_ids": [part_id]}, headers=place.key, timeout=60.0)
    with place.api:
        reply = httpx.post(complete, json={"part_ids": [part_id]}, headers=place.key, timeout=60.0).json()
        assert (reply["status"], reply["file"]["bytes"]) == ("completed", len(CONTENT))
        place.sweep_until_only(reply["file"]["id"])


def test_a_sweep_that_is_killed_within_its_purge_is_finished_by_the_next(make_place: Callable[[], Place]) -> None:
    place = make_place()
    with place.api:
        ids = [place.post().json()["id"] for _ in range(3)]
        for file_id in ids[:2]:
            httpx.delete(f"{place.api.url}/v1/files/{file_id}", headers=place.key).raise_for_status()
        environment = {
            **os.environ,
            "EMBEDMILL_DATA_DIR": str(place.folder),
            "EMBEDMILL_CONFIG": str(place.folder / "embedmill.toml"),
            "EMBEDMILL_OBJECTS_URL": place.url,
            "EMBEDMILL_FAILPOINTS": "during_file_purge=kill",
        }
        environment = {name: value for name, value in environment.items() if not name.startswith("EMBEDMILL_TEST")}
        ran = subprocess.run([sys.executable, "-c", SWEEP], env=environment, cwd=ROOT, timeout=60, check=False)
        assert ran.returncode == -signal.SIGKILL
        assert len(place.objects()) in (1, 2)  # both are deleted at once, and one of them is gone at the kill
        place.sweep_until_only(ids[2])
        assert place.content(ids[2]) == CONTENT
