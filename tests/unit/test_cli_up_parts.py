"""The parts of `embedmill up` that need no process and no socket."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from cli.commands.processes import wait_for_tables
from cli.data_dir import DataDir, write_private
from cli.errors import CliError
from cli.up.banner import fact_lines, find_program, fits_frame, next_lines
from cli.up.child_process import Backoff, how_ended
from cli.up.instance_lock import instance_lock
from cli.up.listen_address import url_of
from cli.up.start import child_environment


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
        ("gateway.example", "http://gateway.example:80"),
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
    served = fact_lines("http://127.0.0.1:8080", place, "em_a_secret", ["m"], ["local", "voyage"])
    assert served[-1] == "served  by local, voyage" and "served" not in " ".join(first)
    later = fact_lines("http://127.0.0.1:8080", place, None, ["m"])
    assert "key     em_a_secret" in first
    assert "em_a_secret" not in "".join(later)
    assert f"key     in {place.key_file}" in later
    assert any('"model": "m"' in line for line in next_lines("http://127.0.0.1:8080", place, ["m"]))


@pytest.mark.parametrize("name", [".embedmill", "my data", "it's $HOME"])
@pytest.mark.parametrize("is_new", [True, False])
def test_the_place_of_the_key_can_be_pasted_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_new: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    place = DataDir(Path(name))  # as --data-dir names it
    place.make()
    write_private(place.key_file, "em_a_secret\n")
    lines = "\n".join(fact_lines("http://127.0.0.1:8080", place, "em_a_secret" if is_new else None, ["m"]))
    path = lines.partition("kept in " if is_new else "key     in ")[2].partition("\n")[0].removesuffix(")")
    script = f"cat {path}\n" + next_lines("http://127.0.0.1:8080", place, ["m"])[1].partition("$(")[2].partition(")")[0]
    ran = subprocess.run(["sh", "-eu", "-c", script], cwd="/", capture_output=True, text=True, check=True)
    assert ran.stdout == "em_a_secret\n" * 2


def test_a_frame_breaks_no_path(tmp_path: Path) -> None:
    place = DataDir(tmp_path / ("deep" * 20))
    lines = fact_lines("http://127.0.0.1:8080", place, "em_a_secret", ["m"])
    longest = max(map(len, lines))
    assert not fits_frame(lines, 80) and not fits_frame(lines, longest + 3) and fits_frame(lines, longest + 4)


COMMAND = """#!/bin/sh
echo "$EMBEDMILL_DATA_DIR|$*" >> "$CALLS"
"""


def commands_in_a_new_terminal(tmp_path: Path, lines: list[str], cwd: Path) -> list[str]:
    """What `embedmill` and curl are called with when somebody pastes the printed commands, by data directory."""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    for name in ("embedmill", "curl"):
        (programs / name).write_text(COMMAND)
        (programs / name).chmod(0o755)
    script = "\n".join(line for line in lines if line.startswith("  "))
    environment = {"PATH": f"{programs}{os.pathsep}{os.defpath}", "CALLS": str(calls)}
    subprocess.run(["sh", "-eu", "-c", script], cwd=cwd, env=environment, check=True)
    return calls.read_text().splitlines()


@pytest.mark.parametrize("name", ["data", "my data", 'it\'s "$HOME" `x`'])
def test_the_printed_commands_find_any_data_directory_from_anywhere(tmp_path: Path, name: str) -> None:
    place = DataDir(tmp_path / name)
    place.make()
    write_private(place.key_file, "em_a_secret\n")
    lines = next_lines("http://127.0.0.1:8090", place, ["it's", "n"], "embedmill")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    curl, embed, jobs = commands_in_a_new_terminal(tmp_path, lines, elsewhere)
    assert "http://127.0.0.1:8090/v1/embeddings" in curl and "Bearer em_a_secret" in curl and '"model": "it\'s"' in curl
    assert embed == f"{place.path}|embed - --format txt --model it's --out vectors.npy"
    assert jobs == f"{place.path}|jobs list"


def test_the_printed_commands_are_short_for_the_default_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = DataDir(Path(".embedmill").absolute())
    place.make()
    write_private(place.key_file, "em_a_secret\n")
    lines = next_lines("http://127.0.0.1:8080", place, ["m"], "embedmill")
    assert "in this folder" in lines[0] and "  embedmill jobs list" in lines and f"cat {place.key_file}" in lines[1]
    assert not any("EMBEDMILL_DATA_DIR" in line for line in lines)


def test_the_printed_commands_run_the_script_of_a_virtual_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new terminal has not activated it."""
    script = tmp_path / "my venv" / "bin" / "embedmill"
    script.parent.mkdir(parents=True)
    script.write_text(COMMAND)
    monkeypatch.setenv("PATH", str(script.parent))
    found = find_program(DataDir(tmp_path / "data"), str(tmp_path / "my venv"), str(script.with_name("python")))
    assert found == f"'{script}'"


def test_a_private_file_that_cannot_be_replaced_leaves_no_other(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "key", "secret")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_database_that_cannot_be_used_is_left_to_the_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDMILL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EMBEDMILL_DATABASE_URL", f"sqlite:///{tmp_path / 'damaged.db'}")
    (tmp_path / "damaged.db").write_bytes(b"no database" * 1000)
    wait_for_tables("worker", waits=True, migrated=False)
    assert capsys.readouterr() == ("", "")
