"""The spool: a file is whole or nothing, one process has it at a time, and a disk that refuses it is no disaster."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.durability.spool import DamagedFile, Spool
from engine.observability import failpoints

BODY = b"paid for" * 1000
LEAVES_A_FILE = """
import os, signal, sys
from pathlib import Path
from engine.durability.spool import Spool
assert Spool(Path(sys.argv[1]), max_bytes=1 << 20).write("shard", b"left behind")
os.kill(os.getpid(), signal.SIGKILL)
"""


def spool(folder: Path, max_bytes: int = 1 << 20) -> Spool:
    return Spool(folder / "spool", max_bytes=max_bytes)


def leave(folder: Path) -> Path:
    """A file whose process is gone."""
    file = spool(folder).write("shard", BODY)
    assert file is not None
    file.unlock()
    return file.path


def test_a_file_is_its_writer_s_until_it_lets_go(tmp_path: Path) -> None:
    mine = spool(tmp_path).write("shard", BODY)
    assert mine is not None and mine.read() == BODY
    assert list(spool(tmp_path).orphaned()) == []
    mine.unlock()
    [other] = spool(tmp_path).orphaned()
    assert other.read() == BODY
    assert list(spool(tmp_path).orphaned()) == []
    other.remove()
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_a_killed_process_left_is_found(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVES_A_FILE, str(tmp_path / "spool")], check=False)
    [file] = spool(tmp_path).orphaned()
    assert file.read() == b"left behind"
    file.unlock()


@pytest.mark.parametrize("keep", [0, 7, 32, 33, len(BODY)])
def test_a_file_cut_short_anywhere_is_not_believed(tmp_path: Path, keep: int) -> None:
    path = leave(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    [file] = spool(tmp_path).orphaned()
    with pytest.raises(DamagedFile):
        file.read()
    file.quarantine()
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".bad"]
    assert list(spool(tmp_path).orphaned()) == []


@pytest.mark.parametrize("at", [0, 8, 20, 500])
def test_a_file_with_one_byte_altered_is_not_believed(tmp_path: Path, at: int) -> None:
    path = leave(tmp_path)
    altered = bytearray(path.read_bytes())
    altered[at] ^= 1
    path.write_bytes(altered)
    [file] = spool(tmp_path).orphaned()
    with pytest.raises(DamagedFile):
        file.read()
    file.unlock()


def test_a_file_that_was_never_finished_is_removed(tmp_path: Path) -> None:
    path = leave(tmp_path)
    path.rename(path.with_suffix(".part"))
    assert list(spool(tmp_path).orphaned()) == []
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_spool_takes_no_more_than_it_may(tmp_path: Path) -> None:
    small = spool(tmp_path, max_bytes=len(BODY) + 100)
    first = small.write("one", BODY)
    assert first is not None
    assert small.write("two", BODY) is None
    first.remove()
    again = small.write("three", BODY)
    assert again is not None
    again.unlock()


def test_a_disk_that_takes_no_such_file_leaves_nothing_behind(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        assert spool(tmp_path).write("shard", BODY) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_no_disaster(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert spool(tmp_path).write("shard", BODY) is None
    assert list(spool(tmp_path).orphaned()) == []


def test_two_processes_on_one_folder_are_never_refused_because_of_each_other(tmp_path: Path) -> None:
    """Files vanish while their sizes are added up: another process has recorded them."""
    stop = threading.Event()

    def come_and_go() -> None:
        other = spool(tmp_path, 1 << 24)
        while not stop.is_set():
            if (file := other.write("other", b"x")) is not None:
                file.remove()

    others = [threading.Thread(target=come_and_go) for _ in range(2)]
    for each in others:
        each.start()
    ours = spool(tmp_path, 1 << 24)
    try:
        for _ in range(300):
            file = ours.write("ours", b"y")
            assert file is not None
            file.remove()
    finally:
        stop.set()
        for each in others:
            each.join()


def test_room_is_reserved_and_used_when_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", folder], capture_output=True, check=False, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    try:
        small = Spool(folder / "spool", max_bytes=1 << 30)
        small.reserve()
        assert (folder / "spool" / "reserve").stat().st_blocks * 512 >= 32 << 20
        assert "are free in" in caplog.text  # it says so before it is full
        with (folder / "filler").open("wb") as filler, contextlib.suppress(OSError):
            while True:
                filler.write(b"x" * (1 << 20))
                filler.flush()
        kept = small.write("shard", b"paid for" * (1 << 18))
        assert kept is not None and "reserved for paid results" in caplog.text
        assert not (folder / "spool" / "reserve").exists()
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def test_a_write_that_breaks_off_leaves_no_file_and_nothing_open(tmp_path: Path) -> None:
    spool(tmp_path)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    failpoints.arm("during_spool_write=raise")
    try:
        with pytest.raises(failpoints.Failpoint):
            spool(tmp_path).write("shard", BODY)
    finally:
        failpoints.arm("")
    assert list((tmp_path / "spool").iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before
