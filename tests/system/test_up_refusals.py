"""What keeps `embedmill up` from starting is told before anything is started."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def up(folder: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not re.match("EMBEDMILL_|CELERY_", name)}
    return subprocess.run(
        [sys.executable, "-m", "cli", "up", "--data-dir", str(folder / "data"), *(options or ("--port", "0"))],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | {f"EMBEDMILL_{name}": value for name, value in settings.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def refused(run: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    """It ended with one line; no part of it was begun, the embedded Valkey neither."""
    assert run.returncode == code, run.stderr
    assert words in run.stderr and run.stderr.count("\n") == 1 and run.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('[providers.x]\nkind = "opnai"\n', "'opnai' is not a provider"),
        ("[providers.x\n", "embedmill.toml"),
        ('[providers.x]\nkind = "openai"\napi_key = "env:NO_SUCH_VARIABLE"\n', "NO_SUCH_VARIABLE"),
    ],
)
def test_the_configuration_is_read_first(tmp_path: Path, toml: str, words: str) -> None:
    """It said so after the embedded Valkey had been started, and with two more lines."""
    (tmp_path / "embedmill.toml").write_text(toml)
    refused(up(tmp_path), 1, words)
    assert not (tmp_path / "data").exists()


def test_a_setting_and_a_host_that_cannot_be(tmp_path: Path) -> None:
    refused(up(tmp_path, UPSTREAM_PROXY="nonsense"), 1, "EMBEDMILL_UPSTREAM_PROXY")
    refused(up(tmp_path, "--host", "300.1.1.1"), 2, "no address of this machine")
    assert not (tmp_path / "data").exists()


def test_the_port_of_the_operators_is_tried_too(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(up(tmp_path, "--port", "0", OPS_PORT=port), 1, f"port {port} on 127.0.0.1 is in use")
    refused(up(tmp_path, "--port", port, OPS_PORT=port), 2, "--port and EMBEDMILL_OPS_PORT are both")


def a_folder(data: Path) -> None:
    (data / "embedmill.db").mkdir(parents=True)


def a_short_pepper(data: Path) -> None:
    data.mkdir()
    (data / "pepper").write_text("short")


@pytest.mark.parametrize(("made", "words"), [(a_folder, "is a folder"), (a_short_pepper, "pepper holds fewer than")])
def test_the_data_directory_is_looked_at_first(tmp_path: Path, made: Callable[[Path], None], words: str) -> None:
    made(tmp_path / "data")
    refused(up(tmp_path), 1, words)
    assert not (tmp_path / "data" / "valkey").exists()
