"""A data directory that cannot be made ends each part at once, with one line that says where, why and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.processes import ROOT

PLACES = ("under_a_file", "a_file", "of_the_kernel", "pepper_is_a_folder")
PARTS = {
    "api": ("-m", "cli", "api", "--port", "0"),
    "worker": ("-m", "cli", "worker"),
    "scheduler": ("-m", "cli", "scheduler"),
    "migrate": ("-m", "cli", "migrate"),
    "python -m api": ("-m", "api", "--port", "0"),
    "python -m workers": ("-m", "workers"),
    "python -m workers.scheduler": ("-m", "workers.scheduler"),
}


def place_of(kind: str, folder: Path) -> Path:
    file = folder / "file"
    file.write_text("no folder")
    if kind == "pepper_is_a_folder":
        (folder / "pepper").mkdir()
    return {
        "under_a_file": file / "deep" / "data",
        "a_file": file,
        "of_the_kernel": Path("/proc/embedmill/data"),  # nobody makes folders there, root neither
        "pepper_is_a_folder": folder,
    }[kind]


def outcome(arguments: tuple[str, ...], folder: Path, data_dir: Path) -> tuple[int, list[str]]:
    config = folder / "embedmill.toml"
    config.write_text('[providers.local]\nkind = "local"\n')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDMILL_")}
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=kept
        | {
            "EMBEDMILL_DATA_DIR": str(data_dir),
            "EMBEDMILL_CONFIG": str(config),
            "EMBEDMILL_REDIS_URL": "redis://127.0.0.1:1/0",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize("part", PARTS)
def test_a_part_whose_data_directory_cannot_be_made_ends_with_one_line(part: str, tmp_path: Path) -> None:
    data_dir = place_of("under_a_file", tmp_path)
    code, lines = outcome(PARTS[part], tmp_path, data_dir)
    assert (code, len(lines)) == (1, 1), lines
    assert str(data_dir) in lines[0] and "a part of its path is no folder" in lines[0]
    assert "EMBEDMILL_DATA_DIR" in lines[0]


@pytest.mark.parametrize("kind", PLACES[1:])
def test_other_data_directories_that_are_of_no_use(kind: str, tmp_path: Path) -> None:
    data_dir = place_of(kind, tmp_path)
    code, lines = outcome(PARTS["python -m api"], tmp_path, data_dir)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("error: ") and str(data_dir) in lines[0] and "EMBEDMILL_DATA_DIR" in lines[0]
