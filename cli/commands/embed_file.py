"""`embedmill embed`: a file of texts in, a file of vectors out."""

from __future__ import annotations

import hashlib
import sys
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cli.client.api_client import Client, Submission
from cli.client.types import Job
from cli.commands.model_selection import choose_model
from cli.errors import CliError, ExitCode, Failure, UsageError
from cli.files.corpus import Corpus, no_texts
from cli.files.open_corpus import open_corpus
from cli.files.save import check_target, save_results, write_ndjson
from cli.files.source import STDIN, is_pipe
from cli.output.estimate import print_estimate
from cli.output.follow import follow_job, print_outcome
from cli.output.progress import JobProgress, job_progress
from cli.output.streams import data_stream
from cli.output.terminal import err, tolerant_out

STDOUT = Path("-")
LINES_PER_REPORT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """The options of the command line. None: the default that the help names."""

    file: Path
    target: Path | None = None
    model: str | None = None
    text_column: str | None = None
    id_column: str | None = None
    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    dimensions: int | None = None
    input_type: str | None = None
    truncate: str | None = None
    max_cost: str | None = None
    dry_run: bool = False
    new: bool = False


@dataclass(frozen=True, slots=True)
class CorpusDigest:
    """The result of the first reading: number of records, their size as lines, and their SHA-256."""

    records: int
    size: int
    digest: bytes


def embed_file(request: EmbedRequest, client: Client) -> ExitCode:
    """Send the file as one job, follow it, save its vectors. Whatever could be refused is checked first."""

    def choose() -> str:
        name = choose_model(client.models(), request.model)
        err.print(f"model {name}", markup=False)
        return name

    model = choose() if is_pipe(request.file) else None  # a pipe may take hours: the model is chosen before it is read
    corpus = open_corpus(
        request.file,
        text_column=request.text_column,
        id_column=request.id_column,
        format=request.format,
        encoding=request.encoding,
        delimiter=request.delimiter,
    )
    target = request.target or default_target(request.file)
    if not request.dry_run:
        if target == STDOUT:
            data_stream()  # an error now, not after everything is paid
        else:
            check_target(target)
    model = model or choose()
    for note in corpus.notes:
        err.print(note, markup=False)
    options = {
        "model": model,
        "dimensions": request.dimensions,
        "input_type": request.input_type,
        "truncate": request.truncate,
        "max_cost_usd": request.max_cost,
    }
    with job_progress(err) as progress:
        if request.dry_run:  # nothing is spent: one reading is enough
            estimate = client.estimate(_lines(corpus, None, progress), options)
        else:
            content = digest_corpus(corpus, progress)
            submission = _send(client, corpus, content, options, request.new, progress)
            job = follow_job(client, submission.job.id, progress)
    if request.dry_run:
        print_estimate(estimate)
        return estimate.exit_code
    if job.exit_code == ExitCode.FAILED:
        print_outcome(job)
        raise CliError(f"{job.id} ended as {job.status}", _advice(submission, job), failure=Failure.JOB)
    _save(client, job, target)
    return job.exit_code


def default_target(file: Path) -> Path:
    """`texts.jsonl.gz` → `texts.npy` in the current directory; what came from a pipe goes to one. Raises UsageError."""
    if file != STDIN and file.suffix:
        stem = Path(file.stem) if file.suffix.lower() in (".gz", ".zst") else Path(file.name)
        return stem.with_suffix(".npy")
    if not sys.stdout.isatty():
        return STDOUT
    raise UsageError("the vectors have no place to go", "name a file with --out, or --out - for lines on stdout")


def digest_corpus(corpus: Corpus, progress: JobProgress) -> CorpusDigest:
    """Read the whole corpus once, so that nothing is sent of one that cannot be read. Raises UsageError, CliError."""
    digest, records, size = hashlib.sha256(), 0, 0
    for line in corpus.lines():
        if records % LINES_PER_REPORT == 0:
            progress.checking(corpus.name, corpus.fraction_read())
        digest.update(line)
        records += 1
        size += len(line)
    if not records:
        raise no_texts(corpus.source)
    return CorpusDigest(records, size, digest.digest())


def idempotency_key(content: CorpusDigest, options: Mapping[str, object], *, is_packed: bool) -> str:
    """The same for the same records and options: running a command again comes back to its job.

    The server compares bodies as they arrive, so the packing counts too.
    """
    compression = zlib.ZLIB_RUNTIME_VERSION if is_packed else ""
    parts = msgspec.json.encode([content.digest.hex(), sorted(options.items()), compression])
    return f"cli-{hashlib.sha256(parts).hexdigest()}"


def _send(
    client: Client,
    corpus: Corpus,
    content: CorpusDigest,
    options: Mapping[str, object],
    new: bool,
    progress: JobProgress,
) -> Submission:
    key = uuid.uuid4().hex if new else idempotency_key(content, options, is_packed=not client.is_local)
    try:
        submission = client.create_job(_lines(corpus, content, progress), options, idempotency_key=key)
    except KeyboardInterrupt:
        again = "run it again: what has arrived is not paid twice" if not new else "run it again"
        message = "interrupted before the whole corpus was sent"
        raise CliError(message, again, failure=Failure.INTERRUPTED) from None
    if submission.is_replay:
        err.print(f"{submission.job.id} is this file with these options; --new would embed it again", markup=False)
    return submission


def _lines(corpus: Corpus, content: CorpusDigest | None, progress: JobProgress) -> Callable[[], Iterator[bytes]]:
    def lines() -> Iterator[bytes]:
        digest, number = hashlib.sha256(), -1
        for number, line in enumerate(corpus.lines()):
            if number % LINES_PER_REPORT == 0:
                progress.reading(corpus.name, corpus.fraction_read())
            if content is not None:
                digest.update(line)
            yield line
        if content is None:
            if number < 0:
                raise no_texts(corpus.source)
        elif digest.digest() != content.digest:  # raised before the upload's last byte: the server drops it
            fix = "run it again once nobody writes to it"
            raise CliError(f"{corpus.name} changed while it was read", fix, failure=Failure.FILE)

    return lines


def _advice(submission: Submission, job: Job) -> str:
    if submission.is_replay:
        again = "`embedmill embed` with --new starts another"
        return f"`embedmill jobs retry {job.id}` tries again, {again}" if job.status == "failed" else again
    return f"`embedmill jobs show {job.id}` tells more"


def _save(client: Client, job: Job, target: Path) -> None:
    total = job.counts.total or 0
    rows = max(total, 1)
    try:
        if target == STDOUT:
            missing = write_ndjson(client, job, data_stream())
        else:
            with job_progress(err) as progress:
                missing = save_results(client, job, target, lambda done: progress.saving(target.name, done / rows))
    except KeyboardInterrupt:
        raise CliError(
            "interrupted while saving; the vectors are kept on the server",
            f"fetch them with `embedmill jobs results {job.id} --out {target}`",
            failure=Failure.INTERRUPTED,
        ) from None
    print_outcome(job)
    message = f"{total:,} × {job.dimensions} → {'stdout' if target == STDOUT else target}"
    if missing:
        message += f", {missing:,} of them without a vector"
    (err if target == STDOUT else tolerant_out).print(message, markup=False)
