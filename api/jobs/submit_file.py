"""The form of a job that names a stored file: the file is checked, and a worker reads it."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from sqlalchemy import Row

from api.http.auth import caller_of, runtime_of
from api.http.schemas import JobRequest
from engine.corpus.lines import ByteLimit
from engine.files.composition import files_of
from engine.files.corpus_file import CorpusFile, open_corpus_file
from engine.files.read import get_file
from engine.jobs.composition import dry_run_of
from engine.jobs.ingest.file_job import create_file_job
from engine.jobs.ingest.job_intake import JobSpec, Reservation
from models.errors import InvalidInput
from models.file import FilePurpose
from models.file_errors import FileNotFound


async def checked_file(request: Request, fields: JobRequest) -> CorpusFile:
    """The file that the request names, opened. Raises FileNotFound; InvalidInput for one that holds no corpus."""
    if fields.input is not None:
        raise InvalidInput(
            "Send either 'input' or 'input_file_id', not both.", param="input_file_id", code="invalid_value"
        )
    files, file_id = files_of(runtime_of(request)), str(fields.input_file_id)
    try:
        file = await get_file(files, caller_of(request).project, file_id)
        _check_purpose(file)
        corpus = await open_corpus_file(files, file_id, text_column=fields.text_column, id_column=fields.id_column)
    except FileNotFound as error:
        error.param = "input_file_id"
        raise
    corpus.check_name()
    return corpus


def _check_purpose(file: Row[Any]) -> None:
    if file.purpose != FilePurpose.USER_DATA:
        raise InvalidInput(
            f"The file has the purpose '{file.purpose}'. Send a corpus with the purpose 'user_data'; a file of "
            "requests runs as a batch: POST /v1/batches.",
            param="input_file_id",
            code="invalid_purpose",
        )
    if not file.bytes:
        raise InvalidInput("The file is empty. Send one with a text.", param="input_file_id", code="empty_file")


async def estimate_file(request: Request, spec: JobSpec, corpus: CorpusFile) -> dict[str, Any]:
    """The estimate of a job of this file. Raises InvalidInput where it cannot be read."""
    runtime = runtime_of(request)
    estimate = await dry_run_of(runtime, spec, caller_of(request).project)
    meter = ByteLimit(runtime.settings.max_job_bytes)
    async for chunk in corpus.chunks:
        await estimate.read(corpus.parse(chunk, meter))
    await estimate.read(corpus.finish(meter))
    return await estimate.finish()


async def submit_file(
    request: Request, spec: JobSpec, fields: JobRequest, reservation: Reservation, fingerprint: bytes
) -> str:
    """Create the job. Returns its id."""
    runtime = runtime_of(request)
    await runtime.keys.recheck(caller_of(request))
    await create_file_job(
        runtime.store,
        caller_of(request),
        spec,
        reservation,
        fingerprint,
        file_id=str(fields.input_file_id),
        columns={"text_column": fields.text_column, "id_column": fields.id_column},
    )
    return reservation.job_id
