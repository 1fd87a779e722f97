"""`embedmill up` for real: its processes started, found, killed on purpose and ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from cli.up.embedded_valkey import find_binary
from cli.up.listen_address import usable_port
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
# What tells a piece by its arguments, whether it has become another module already or not.
PIECES = {
    "valkey": {"valkey-server"},
    "api": {"api"},
    "worker": {"worker", "workers"},
    "scheduler": {"scheduler", "workers.scheduler"},
}
READY_S = 60.0
STOP_S = 80.0

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see which processes are there"),
    pytest.mark.timeout(300),
]


class Up:
    """One `embedmill up`, and everything it started."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        self.data_dir = folder / "data"
        self.folder = folder
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        ours = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
        self.environment = ours | settings | {"PYTHONPATH": str(ROOT), "EMBEDMILL_DATA_DIR": str(self.data_dir)}
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                self.command("up", "--port", "0", *options), env=self.environment, cwd=folder, stdout=out, stderr=err
            )

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "cli", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another command of ours, beside the running one."""
        return subprocess.run(
            self.command(*arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True, check=False
        )

    @property
    def url(self) -> str:
        return (self.data_dir / "url").read_text().strip()

    @property
    def key(self) -> str:
        return (self.data_dir / "key").read_text().strip()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.stderr.read_text()[-4000:]
        try:
            return "is ready" in self.stdout.read_text() and httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self) -> None:
        wait_until(self.ready, READY_S, what="/readyz")

    def get(self, path: str) -> Any:
        reply = httpx.get(f"{self.url}{path}", headers={"authorization": f"Bearer {self.key}"})
        return reply.raise_for_status().json()

    def pids(self) -> list[int]:
        """Every process that was given this data directory, the supervisor itself too, dead ones not."""
        wanted = f"EMBEDMILL_DATA_DIR={self.data_dir}\0".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                # Valkey writes its title over its environment, but works in a folder of ours.
                at_home = (folder / "cwd").readlink() == self.data_dir / "valkey"
                if at_home or wanted in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # ended while we looked
        return found

    def pid_of(self, piece: str) -> int | None:
        """The child that is this piece: of a worker's processes the one that the supervisor started."""
        for pid in self.pids():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("/", "\0").split("\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            if parent == self.process.pid and any(word.split()[0] in PIECES[piece] for word in command if word.strip()):
                return pid
        return None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextmanager
def started(folder: Path, *options: str, **settings: str) -> Iterator[Up]:
    up = Up(folder, *options, **settings)
    try:
        up.wait_until_ready()
        yield up
    finally:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
        wait_until(lambda: not up.pids(), 10.0, what="the end of every process")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("up")) as running:
        yield running


def test_first_start_shows_the_key_once_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as first:
        key = first.key
        assert first.stdout.read_text().count(key) == 1
        assert key not in first.stderr.read_text()
        assert first.get("/v1/models")["data"][0]["id"] == "local/wordllama-256"
        for name in ("key", "url", "lock", "redis_url", "pepper", "valkey/valkey.conf"):
            assert stat.S_IMODE((first.data_dir / name).stat().st_mode) == 0o600, name
        assert stat.S_IMODE(first.data_dir.stat().st_mode) == 0o700
        assert len(first.pids()) >= 1 + len(PIECES) + 2
        assert first.stop() == 0
        assert first.pids() == []
        assert not (first.data_dir / "redis_url").exists()
        assert "`embedmill up`, which brings one, is not running" in first.run("doctor").stdout
    with started(tmp_path) as second:
        assert key not in second.stdout.read_text()
        assert f"key     in {second.data_dir / 'key'}" in second.stdout.read_text()
        assert second.key == key
        assert second.get("/v1/models")
        assert second.stop(signal.SIGINT) == 0
        assert second.pids() == []


def test_after_a_kill_the_broker_is_not_blamed_and_the_printed_commands_worked(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with started(tmp_path) as running:
        lines = running.stdout.read_text().partition("Try, in another terminal")[2].splitlines()[1:]
        script = "\n".join(line for line in lines if line.startswith("  "))
        bare = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"}
        ran = subprocess.run(["sh", "-eu", "-c", script], cwd=elsewhere, env=bare, capture_output=True, check=False)
        assert ran.returncode == 0 and (elsewhere / "vectors.npy").is_file(), ran.stderr
        running.stop(signal.SIGKILL)
        wait_until(lambda: running.pids() == [], 20.0, what="the end of its children")
        assert (running.data_dir / "redis_url").exists()
        found = running.run("doctor").stdout
        assert "`embedmill up`, which brings one, is not running" in found and "redis://" not in found


def test_a_second_one_is_refused(up: Up) -> None:
    second = up.run("up", "--port", "0")
    assert second.returncode == 1
    assert second.stdout == ""
    assert str(up.process.pid) in second.stderr
    assert up.url in second.stderr
    assert second.stderr.count("\n") == 1
    assert up.ready()


def test_secrets_are_in_no_argument(up: Up) -> None:
    secrets = [up.key, (up.data_dir / "redis_url").read_text().strip().split(":")[2].split("@")[0]]
    for pid in up.pids():
        command = Path(f"/proc/{pid}/cmdline").read_text()
        assert not any(secret in command for secret in secrets)


@pytest.mark.parametrize("piece", PIECES)
def test_a_killed_child_comes_back(up: Up, piece: str) -> None:
    wait_until(lambda: all(up.pid_of(each) for each in PIECES), 20.0)
    redis_url = (up.data_dir / "redis_url").read_text()
    killed = up.pid_of(piece)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: up.pid_of(piece) not in (None, killed), 20.0, what=f"another {piece}")
    up.wait_until_ready()
    assert (up.data_dir / "redis_url").read_text() == redis_url
    assert f"{piece} was killed by SIGKILL" in up.stderr.read_text()
    texts = up.folder / "after.txt"
    texts.write_text("a text\nanother one\n")
    done = up.run("embed", str(texts), "--out", str(up.folder / "after.npy"))
    assert done.returncode == 0, done.stderr


def test_embed_writes_what_a_sync_call_answers(up: Up) -> None:
    texts = [f"text number {i}" for i in range(300)]
    corpus = up.folder / "texts.jsonl"
    corpus.write_text("".join(json.dumps({"id": f"n{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    done = up.run("embed", str(corpus), "--out", "texts.npy")
    assert (done.returncode, done.stdout) == (0, "300 × 256 → texts.npy\n")
    assert "completed" in done.stderr
    reply = httpx.post(
        f"{up.url}/v1/embeddings",
        headers={"authorization": f"Bearer {up.key}"},
        json={"model": "local/wordllama-256", "input": texts},
    )
    one_by_one = np.array([item["embedding"] for item in reply.json()["data"]], dtype=np.float32)
    assert (np.load(up.folder / "texts.npy") == one_by_one).all()


def test_a_bad_line_keeps_its_place_in_every_format(up: Up) -> None:
    corpus = up.folder / "mixed.jsonl"
    corpus.write_text('{"id": "a", "text": "first"}\n\n{"id": "c", "text": "cut\n"third"\n')
    for ending in ("npy", "ndjson", "parquet"):
        done = up.run("embed", str(corpus), "--out", f"mixed.{ending}")
        assert done.returncode == 3, done.stderr
        assert "2 × invalid_json" in done.stderr
    vectors = np.load(up.folder / "mixed.npy")
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, False]
    lines = [json.loads(line) for line in (up.folder / "mixed.ndjson").read_text().splitlines()]
    assert [(line["index"], line["id"], "error" in line) for line in lines] == [
        (0, "a", False),
        (1, None, True),
        (2, None, True),
        (3, None, False),
    ]
    table = pyarrow.parquet.read_table(up.folder / "mixed.parquet")
    assert [vector is None for vector in table.column("embedding").to_pylist()] == [False, True, True, False]
    assert (np.array(table.column("embedding").to_pylist()[3], dtype=np.float32) == vectors[3]).all()
    job_id = up.get("/v1/embeddings/jobs")["data"][0]["id"]
    errors = up.run("jobs", "errors", job_id)
    assert [line.split(":")[0] for line in errors.stdout.splitlines()] == ["1 invalid_json", "2 invalid_json"]
    assert up.run("jobs", "wait", job_id).returncode == 3


def test_the_other_commands_find_the_server(up: Up) -> None:
    report = up.run("doctor", "--json")
    assert report.returncode == 0, report.stdout
    assert {finding["status"] for finding in json.loads(report.stdout)} == {"ok"}
    made = up.run("keys", "create", "--name", "second", "--scope", "jobs", "--json")
    key = json.loads(made.stdout)
    assert up.run("jobs", "list", "--api-key", key["key"]).returncode == 0
    assert up.run("keys", "revoke", key["id"]).returncode == 0
    assert up.run("keys", "revoke", key["id"]).returncode == 1
    assert key["id"] in up.run("keys", "list").stdout
    for command in (["models"], ["jobs", "list"], ["models", "--json"], ["jobs", "list", "--json"]):
        assert up.run(*command).returncode == 0
    unknown = up.run("jobs", "show", "job_1")
    assert unknown.returncode == 1
    assert "req_" in unknown.stderr


def test_kill_nine_leaves_no_process(tmp_path: Path) -> None:
    with started(tmp_path) as up:
        assert len(up.pids()) > len(PIECES)
        up.process.kill()
        up.process.wait()
        wait_until(lambda: not up.pids(), 10.0, what="the end of the children")
    with started(tmp_path) as again:
        assert again.stop() == 0


def test_a_port_in_use_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        up = Up(tmp_path, "--port", str(port))
        assert up.process.wait(30) == 1
    assert up.stderr.read_text() == (
        f"error: port {port} on 127.0.0.1 is in use (choose another, e.g. --port {port + 1}, or --port 0)\n"
    )


def test_a_wrong_configuration_stops_the_start_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "embedmill.toml").write_text('[providers.x]\nkind = "opnai"\n')
    up = Up(tmp_path)
    assert up.process.wait(READY_S) == 1
    assert "'opnai' is not a provider" in up.stderr.read_text()
    assert "Traceback" not in up.stderr.read_text()
    assert up.pids() == []


def test_a_redis_of_your_own_is_used_and_none_is_started(tmp_path: Path) -> None:
    port = usable_port("127.0.0.1", 0)
    own = subprocess.Popen([find_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", ""], cwd=tmp_path)
    try:
        with started(tmp_path, EMBEDMILL_REDIS_URL=f"redis://127.0.0.1:{port}/3") as up:
            assert up.pid_of("valkey") is None
            assert not (up.data_dir / "redis_url").exists()
            assert up.stop() == 0
    finally:
        own.terminate()
        own.wait()


def test_quiet_children_write_to_files(tmp_path: Path) -> None:
    with started(tmp_path, "--quiet") as up:
        parts = [line.split()[0] for line in up.stderr.read_text().splitlines()]
        assert parts == ["broker", "migrations", "api", "scheduler", "worker", "waiting"]  # our own steps, nothing else
        assert (up.data_dir / "logs" / "scheduler.log").read_text() != ""
        assert up.stop() == 0
