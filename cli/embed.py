"""`embedmill embed`: a file of texts in, a file of vectors out."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cli.client import Client
from cli.corpus import Corpus, open_corpus
from cli.errors import CliError, ExitCode, UsageError
from cli.estimate import print_estimate
from cli.job import Job, Model
from cli.progress import JobProgress, job_progress
from cli.results import check_target, save_results
from cli.terminal import err, out
from cli.watch import follow, report

BUILT_IN_MODEL = "local/wordllama-256"
LINES_PER_REPORT = 512


def embed(
    file: Path,
    *,
    model: str | None,
    target: Path | None,
    text_column: str | None,
    id_column: str | None,
    dimensions: int | None,
    input_type: str | None,
    truncate: str | None,
    max_cost: str | None,
    dry_run: bool,
    client: Client,
) -> ExitCode:
    """Send the file as one job, follow it, save its vectors. Whatever could be refused is checked first."""
    corpus = open_corpus(file, text_column=text_column, id_column=id_column)
    target = target or default_target(file)
    if not dry_run:
        check_target(target)
    options = {
        "model": choose_model(client.models(), model),
        "dimensions": dimensions,
        "input_type": input_type,
        "truncate": truncate,
        "max_cost_usd": max_cost,
    }
    if dry_run:
        with job_progress(err) as progress:
            estimate = client.estimate(_lines(corpus, progress), options)
        print_estimate(estimate)
        return ExitCode.INPUT_ERRORS if estimate.refused_inputs else ExitCode.DONE
    with job_progress(err) as progress:
        job_id = _send(client, corpus, options, progress)
        job = follow(client, job_id, progress)
        if job.exit_code != ExitCode.FAILED:
            _save(client, job, target, progress)
    report(job)
    if job.exit_code == ExitCode.FAILED:
        raise CliError(f"{job.id} ended as {job.status}", f"`embedmill jobs show {job.id}` tells more")
    out.print(f"{job.counts.total:,} × {job.dimensions} → {target}", markup=False)
    return job.exit_code


def default_target(file: Path) -> Path:
    """`texts.jsonl.gz` → `texts.npy` in the current directory."""
    return Path(file.name.removesuffix(".gz")).with_suffix(".npy")


def choose_model(models: list[Model], asked: str | None) -> str:
    """The model asked for, else the only one, else the built-in one. Raises UsageError that lists what there is."""
    names = [model.id for model in models]
    if asked is not None and asked in names:
        return asked
    if asked is None and len(names) == 1:
        return names[0]
    if asked is None and BUILT_IN_MODEL in names:
        return BUILT_IN_MODEL
    if not names:
        raise CliError("this key may use no model of the server", "ask for a key that may")
    problem = f"the server has no model {asked!r}" if asked else "the server has several models"
    raise UsageError(problem, f"choose with --model: {', '.join(sorted(names))}")


def _send(client: Client, corpus: Corpus, options: Mapping[str, object], progress: JobProgress) -> str:
    try:
        # One key per run: sending again after a broken connection is the same job, running the command again is not.
        return client.create_job(_lines(corpus, progress), options, idempotency_key=uuid.uuid4().hex).id
    except KeyboardInterrupt:
        raise CliError("interrupted before the whole corpus was sent; nothing is embedded", "run it again") from None


def _lines(corpus: Corpus, progress: JobProgress) -> Callable[[], Iterator[bytes]]:
    def lines() -> Iterator[bytes]:
        for number, line in enumerate(corpus.lines()):
            if number % LINES_PER_REPORT == 0:
                progress.reading(corpus.path.name, corpus.fraction_read())
            yield line

    return lines


def _save(client: Client, job: Job, target: Path, progress: JobProgress) -> None:
    rows = max(job.counts.total or 0, 1)
    try:
        save_results(client, job, target, lambda done: progress.saving(target.name, done / rows))
    except KeyboardInterrupt:
        raise CliError(
            "interrupted while saving; the vectors are kept on the server",
            f"fetch them with `embedmill jobs results {job.id} --out {target}`",
        ) from None
