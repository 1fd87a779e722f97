"""How the command line ends: four exit codes, and one error that prints as one line."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """The exit codes. Scripts rely on these numbers."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INPUT_ERRORS = 3  # the job finished, but some inputs have an error instead of a vector


class Failure(StrEnum):
    """Every kind of failure of a command, as docs/operations.md lists them."""

    COMMAND_LINE = "an option, a value or a combination of them cannot be, whoever says so: this program or the server"
    NOT_FOUND = "the command line names what is not there: a file, a column, a model, an account"
    GONE = "there is no such job or key, or not any more: these come and go"
    FILE = "the file is damaged, or holds what cannot be read for certain"
    CONFIGURATION = "a setting or the configuration file cannot be used"
    NOT_SET_UP = "there is no server, no database or no table yet"
    SERVER = "the server does not answer, or refuses: the key, the state of a job, too much at once"
    JOB = "the job failed, was cancelled, has expired, or stands still at its ceiling; a dry run: it would"
    MACHINE = "the machine does not allow it: a port in use, a full disk, a missing right"
    INTERRUPTED = "somebody interrupted it"
    UNEXPECTED = "anything else"
    INPUT_ERRORS = "the job finished, and some inputs have an error instead of a vector; a dry run: they would"


# The one table: 2, when the command line must change; 3, when some inputs must; 1, when it is something else.
CODES: dict[Failure, ExitCode] = dict.fromkeys(Failure, ExitCode.FAILED) | {
    Failure.COMMAND_LINE: ExitCode.USAGE,
    Failure.NOT_FOUND: ExitCode.USAGE,
    Failure.INPUT_ERRORS: ExitCode.INPUT_ERRORS,
}


class CliError(Exception):
    """Ends the command with `error: <message> (<fix>)` on stderr and the exit code of its failure."""

    def __init__(self, message: str, fix: str | None = None, *, failure: Failure = Failure.UNEXPECTED) -> None:
        super().__init__(f"{message} ({fix})" if fix else message)
        self.failure = failure

    @property
    def code(self) -> ExitCode:
        """The exit code of the command."""
        return CODES[self.failure]


class UsageError(CliError):
    """The command line itself must change."""

    def __init__(self, message: str, fix: str | None = None, *, failure: Failure = Failure.COMMAND_LINE) -> None:
        super().__init__(message, fix, failure=failure)


class NotFound(UsageError):
    """The command line names something that does not exist."""

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message, fix, failure=Failure.NOT_FOUND)
