"""How the command line ends: four exit codes, and one error that prints as one line."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell is told. Scripts rely on these numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INPUT_ERRORS = 3  # the job finished, but some inputs have an error instead of a vector


class CliError(Exception):
    """Ends the command with `error: <message> (<fix>)` on stderr and its exit code."""

    def __init__(self, message: str, fix: str | None = None, *, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(f"{message} ({fix})" if fix else message)
        self.code = code


class UsageError(CliError):
    """The command line itself must change."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message, fix, code=ExitCode.USAGE)
