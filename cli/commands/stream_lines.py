"""`embedmill stream`: lines in, one result line for each, in order, as they become ready. One durable job runs it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from cli.client.api_client import Client
from cli.client.responses import ServerRefusal
from cli.client.types import Job
from cli.commands.embed_file import STDOUT, CorpusDigest, idempotency_key
from cli.commands.model_selection import choose_model
from cli.commands.refused_lines import write_refused_lines
from cli.errors import CODES, CliError, ExitCode, Failure, UsageError
from cli.files.line_input import LineInput
from cli.files.line_output import FileLines, StdoutLines, StreamState
from cli.files.result_copy import check_earlier_lines, copy_ready_lines
from cli.output.follow import print_outcome
from cli.output.progress import JobProgress, LineProgress, job_progress
from cli.output.streams import data_stream
from cli.output.terminal import err

ANOTHER_FILE = "name another file, or remove it"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """The options of the command line. None: the default that the help names."""

    target: Path | None = None
    model: str | None = None
    dimensions: int | None = None
    input_type: str | None = None
    truncate: str | None = None
    encoding: str = "float"
    resume: str | None = None
    new: bool = False


def stream_lines(request: StreamRequest, client: Client, stdin: BinaryIO) -> ExitCode:
    """Send `stdin` as one job and write its results, or go on with the results of a job."""
    is_stdout = request.target is None or request.target == STDOUT
    output = StdoutLines(data_stream()) if is_stdout or request.target is None else FileLines(request.target)
    # No bar where the lines themselves go to the terminal.
    progress = LineProgress(err) if is_stdout and sys.stdout.isatty() else job_progress(err)
    with closing(output), progress:
        run = _StreamRun(request, client, output, progress)
        if isinstance(output, FileLines) and not output.holds_results():  # said before anything is spent
            raise UsageError(f"{output.path} holds something else than results", ANOTHER_FILE)
        if request.resume is not None:
            return run.write_results(client.job(request.resume))
        return run.send_and_write(LineInput(stdin, lambda fraction: progress.checking("stdin", fraction)))


class _StreamRun:
    """One run of the command."""

    def __init__(
        self, request: StreamRequest, client: Client, output: StdoutLines | FileLines, progress: JobProgress
    ) -> None:
        self._request = request
        self._client = client
        self._output = output
        self._progress = progress

    def send_and_write(self, lines: LineInput) -> ExitCode:
        """Write the results of these lines, whose job an earlier run may have started."""
        if lines.is_blank:
            self._require_no_lines()
            err.print("stdin holds no lines")
            return ExitCode.DONE
        if self._request.new:
            self._require_no_lines()
        options = {
            "model": choose_model(self._client.models(), self._request.model),
            "dimensions": self._request.dimensions,
            "input_type": self._request.input_type,
            "truncate": self._request.truncate,
        }
        key = self._key(lines, options)
        try:
            job = self._earlier_job(key) or self._send(lines, options, key)
        except ServerRefusal as refusal:
            if refusal.error_code != "no_usable_input":
                raise
            write_refused_lines(lines, self._output, str(refusal))
            return CODES[Failure.INPUT_ERRORS]
        return self.write_results(job, key)

    def write_results(self, job: Job, key: str | None = None) -> ExitCode:
        """Write what is missing of the results of a job, while it runs too."""
        check_earlier_lines(self._client, job, self._request.encoding, self._output)
        if isinstance(self._output, FileLines) and key is not None:
            self._output.save_state(StreamState(job.id, self._client.url, key))
        err.print(f"{job.id}: {self._again(job)} goes on, whatever happens to this command", markup=False)
        ended = self._follow(job)
        if isinstance(self._output, FileLines):
            self._output.remove_state()
        print_outcome(ended)
        return ended.exit_code

    def _key(self, lines: LineInput, options: Mapping[str, Any]) -> str:
        if self._request.new:
            return uuid.uuid4().hex
        content = CorpusDigest(0, lines.size, lines.digest)
        return idempotency_key(content, options, is_packed=not self._client.is_local)

    def _earlier_job(self, key: str) -> Job | None:
        """The job that an earlier run has noted beside the file. Raises UsageError when it is of another input."""
        if not isinstance(self._output, FileLines) or self._request.new:
            return None
        state = self._output.load_state()
        if state is None or state.url != self._client.url:
            return None
        if state.key != key:
            path = self._output.path
            raise UsageError(
                f"{path} is being written from another input, or with other options ({state.job})",
                f"`embedmill stream --resume {state.job} --out {path}` goes on with it; else {ANOTHER_FILE}",
            )
        try:
            return self._client.job(state.job)
        except ServerRefusal as refusal:
            if refusal.failure is not Failure.GONE:
                raise
            return None

    def _send(self, lines: LineInput, options: Mapping[str, Any], key: str) -> Job:
        def pieces() -> Iterator[bytes]:
            for piece in lines.pieces():
                self._progress.reading("stdin", lines.fraction_read)
                yield piece

        try:
            submission = self._client.create_job(pieces, options, idempotency_key=key)
        except KeyboardInterrupt:
            message = "interrupted before all of stdin was sent"
            again = "run it again: what has arrived is not paid twice"
            raise CliError(message, again, failure=Failure.INTERRUPTED) from None
        if submission.is_replay:
            err.print(f"{submission.job.id} is this input with these options; --new embeds it again", markup=False)
        return submission.job

    def _require_no_lines(self) -> None:
        if self._output.lines and isinstance(self._output, FileLines):
            raise UsageError(f"{self._output.path} holds lines that are not of this run", ANOTHER_FILE)

    def _follow(self, job: Job) -> Job:
        """Write every line of a job while it runs. Raises CliError when it does not get to its end."""
        job_id = job.id
        try:
            for job in self._client.changes(job_id):
                self._progress.working(job)
                copy_ready_lines(
                    self._client, job, self._request.encoding, self._output, partial(self._show_saved, job)
                )
                if job.status == "paused" and job.waiting_on == "budget":
                    fix = f"raise it with `embedmill jobs resume {job_id} --max-cost USD`, then {self._again(job)}"
                    raise CliError(f"{job_id} is paused: its ceiling is reached", fix, failure=Failure.JOB)
        except KeyboardInterrupt:
            raise CliError(
                f"interrupted; {job_id} goes on without this command",
                f"{self._again(job)} writes the rest; `embedmill jobs cancel {job_id}` stops it",
                failure=Failure.INTERRUPTED,
            ) from None
        except BrokenPipeError:
            err.print(f"stdout was closed; {job_id} goes on: `embedmill jobs cancel {job_id}` stops it", markup=False)
            raise
        total = job.counts.total or 0
        if self._output.lines < total or job.exit_code == ExitCode.FAILED:
            print_outcome(job)
            raise CliError(
                f"{job_id} ended as {job.status}: {self._output.lines:,} of {total:,} lines are written",
                f"`embedmill jobs show {job_id}` tells more; --new starts another",
                failure=Failure.JOB,
            )
        return job

    def _show_saved(self, job: Job, lines: int) -> None:
        if job.finished and job.counts.total:  # until then, it is the job that takes the time
            self._progress.saving("results", lines / job.counts.total)

    def _again(self, job: Job) -> str:
        target = f" --out {self._output.path}" if isinstance(self._output, FileLines) else ""
        encoding = f" --encoding-format {self._request.encoding}" if self._request.encoding != "float" else ""
        return f"`embedmill stream --resume {job.id}{encoding}{target}`"
