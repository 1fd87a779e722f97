"""The parts of `embedmill up` that need no process and no socket."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cli.data_dir import DataDir, write_private
from cli.errors import CliError
from cli.up.banner import fact_lines, next_lines
from cli.up.child_process import Backoff, how_ended
from cli.up.instance_lock import instance_lock
from cli.up.listen_address import url_of
from cli.up.start import child_environment

ROOT = Path(__file__).resolve().parents[2]


def test_pauses_double_up_to_five_seconds_and_a_healthy_life_forgives() -> None:
    backoff = Backoff()
    assert [backoff.pause_s(uptime_s=0.1) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.pause_s(uptime_s=31.0) == 0.2
    assert backoff.pause_s(uptime_s=29.0) == 0.4


def test_a_death_is_named() -> None:
    assert how_ended(3) == "exited with status 3"
    assert how_ended(-9) == "was killed by SIGKILL"
    assert how_ended(-99) == "was killed by signal 99"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("mill.example", "http://mill.example:80"),
    ],
)
def test_the_url_is_one_that_can_be_reached(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_private_files(tmp_path: Path) -> None:
    place = DataDir(tmp_path / "deep" / "data")
    place.make()
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
    for text in ("first", "second"):
        write_private(place.key_file, text + "\n")
        assert stat.S_IMODE(place.key_file.stat().st_mode) == 0o600
        assert place.key() == text
    assert list(place.path.iterdir()) == [place.key_file]
    assert place.url() is None


def test_the_second_holder_is_told_who_the_first_one_is(tmp_path: Path) -> None:
    place = DataDir(tmp_path)
    with instance_lock(place) as note:
        with pytest.raises(CliError, match="just starting"), instance_lock(place):
            pass
        note("http://127.0.0.1:8080")
        with pytest.raises(CliError, match=f"process {os.getpid()}, http://127.0.0.1:8080"), instance_lock(place):
            pass
    with instance_lock(place):
        pass


def test_children_find_our_packages_and_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://somebody:6379/0")
    monkeypatch.delenv("EMBEDMILL_CONFIG", raising=False)
    environment = child_environment(DataDir(tmp_path / "data"), None)
    assert "CELERY_BROKER_URL" not in environment
    assert environment["PYTHONSAFEPATH"] == "1"
    assert (Path(environment["PYTHONPATH"].split(os.pathsep)[0]) / "cli" / "__main__.py").is_file()
    assert environment["EMBEDMILL_DATA_DIR"] == str(tmp_path / "data")
    assert "EMBEDMILL_CONFIG" not in environment
    Path("embedmill.toml").touch()
    assert child_environment(DataDir(tmp_path), None)["EMBEDMILL_CONFIG"] == str(tmp_path / "embedmill.toml")
    assert child_environment(DataDir(tmp_path), Path("x.toml"))["EMBEDMILL_CONFIG"] == str(tmp_path / "x.toml")


def test_the_key_is_shown_once(tmp_path: Path) -> None:
    place = DataDir(tmp_path)
    first = fact_lines("http://127.0.0.1:8080", place, "em_a_secret", ["m"])
    write_private(place.key_file, "em_a_secret\n")
    later = fact_lines("http://127.0.0.1:8080", place, None, ["m"])
    assert "key     em_a_secret" in first
    assert "em_a_secret" not in "".join(later)
    # Told relative to where the command runs, when that is near.
    assert [Path(line.removeprefix("key     in ")).resolve() for line in later if line.startswith("key     in ")] == [
        place.key_file.resolve()
    ]
    assert any('"model": "m"' in line for line in next_lines("http://127.0.0.1:8080", place, ["m"]))


def test_a_piece_without_tables_says_one_line_and_waits_for_them(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    environment |= {"EMBEDMILL_DATA_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cli", "scheduler"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as piece:
        assert piece.stderr is not None
        first = piece.stderr.readline()
        assert first == "the database has no tables yet: run `embedmill migrate`; the scheduler starts when it has\n"
        piece.terminate()
        assert piece.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []
