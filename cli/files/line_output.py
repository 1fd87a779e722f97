"""Where result lines go, one for each input, in order: stdout, or a file that a later run goes on with."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from cli.data_dir import read_line, write_private
from cli.errors import CliError, Failure
from cli.files.save import check_writable

SCAN_BYTES = 1024 * 1024


class StdoutLines:
    """Whole lines on stdout. `lines`: how many it has."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.lines = 0

    def write(self, line: bytes) -> None:
        """Append a line, which ends with its line feed."""
        self._stream.write(line)
        self.lines += 1

    def flush(self) -> None:
        """Let others see what was written."""
        self._stream.flush()

    def close(self) -> None:
        """Nothing: stdout stays."""


def line_start(index: int) -> bytes:
    """How the result line of an index begins."""
    return b'{"index":%d,' % index


class StreamState(msgspec.Struct):
    """Of which job a file holds the results so far. `key`: hash of the input and the options."""

    job: str
    url: str
    key: str


class FileLines:
    """Whole lines in a file, after the last whole one of an earlier run. `lines`: how many it has, those included.

    Beside it, `<file>.job` names the job until the end.
    """

    def __init__(self, path: Path) -> None:
        """Raises UsageError for a file that cannot be written, CliError where another process writes to it."""
        self._state_path = path.with_name(f"{path.name}.job")
        check_writable(path)
        self.path = path
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CliError(f"another process writes to {path}", "wait for it", failure=Failure.MACHINE) from None
        self.lines, self._first_end, self._last_start, self._end = _scan(self._file)
        self._is_trimmed = False
        self._file.seek(self._end)

    def write(self, line: bytes) -> None:
        """As `StdoutLines.write`."""
        self._trim()
        self._file.write(line)
        self.lines += 1

    def flush(self) -> None:
        """As `StdoutLines.flush`."""
        self._file.flush()

    def close(self) -> None:
        """Let the file go; what was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def holds_results(self) -> bool:
        """True when it begins and ends as result lines do, half a line included; only before the first `write`."""
        rest_start = line_start(self.lines)
        rest = os.pread(self._file.fileno(), len(rest_start), self._end)
        first, last = self.ends()
        is_ours = not self.lines or (first.startswith(line_start(0)) and last.startswith(line_start(self.lines - 1)))
        return is_ours and rest_start.startswith(rest)

    def ends(self) -> tuple[bytes, bytes]:
        """The first and the last line that an earlier run has left; only before the first `write`."""
        handle = self._file.fileno()
        first = os.pread(handle, self._first_end, 0)
        return first, os.pread(handle, self._end - self._last_start, self._last_start)

    def _trim(self) -> None:
        """Cut off the half line that a killed run has left, once it is certain that the file is ours."""
        if not self._is_trimmed:
            self._file.truncate(self._end)
            self._is_trimmed = True

    def load_state(self) -> StreamState | None:
        """What an earlier run has noted; None where there is nothing readable."""
        try:
            return msgspec.json.decode(read_line(self._state_path) or "", type=StreamState)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def save_state(self, state: StreamState) -> None:
        """Note the job for a later run."""
        write_private(self._state_path, msgspec.json.encode(state).decode() + "\n")

    def remove_state(self) -> None:
        """The file is whole: nothing follows its last line, and no later run is needed."""
        self._trim()
        self._state_path.unlink(missing_ok=True)


def _scan(file: BinaryIO) -> tuple[int, int, int, int]:
    """Whole lines of a file, where the first ends, where the last begins and ends."""
    lines = first_end = last_start = end = offset = 0
    while block := file.read(SCAN_BYTES):
        if count := block.count(b"\n"):
            if not lines:
                first_end = offset + block.index(b"\n") + 1
            lines += count
            last = block.rindex(b"\n")
            before = block.rfind(b"\n", 0, last)
            last_start = offset + before + 1 if before >= 0 else end
            end = offset + last + 1
        offset += len(block)
    return lines, first_end, last_start, end
