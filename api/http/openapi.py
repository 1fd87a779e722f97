"""The OpenAPI document: routes read raw bytes for speed, so their bodies and answers are described here."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import msgspec
from fastapi import FastAPI

from api.http import schemas

JSON = "application/json"
BINARY = {"schema": {"type": "string", "format": "binary"}}
JOBS = "/v1/embeddings/jobs"
REF = "#/components/schemas/{name}"


def routes(
    embeddings: ModuleType, jobs: ModuleType, models: ModuleType, operations: ModuleType
) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Every route: method, path, endpoint, and how it is documented."""
    sync = {"requestBody": _body({JSON: schemas.EmbeddingRequest})}
    yield (
        "POST",
        "/v1/embeddings",
        embeddings.create_embeddings,
        _doc("Embed up to 2,048 inputs now", "Sync", 200, schemas.EmbeddingResponse, sync),
    )
    corpus = _body({JSON: schemas.JobRequest})
    corpus["content"] |= {"application/x-ndjson": BINARY, "text/plain": BINARY}
    options = [
        _query(name, "Streamed forms only; in a JSON body it is a field.")
        for name in ("model", "dimensions", "input_type", "truncate", "user", "metadata", "max_cost_usd", "dry_run")
    ]
    estimate = {"description": "With `dry_run`", "content": {JSON: {"schema": _ref(schemas.JobEstimate)}}}
    key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 255}}
    yield (
        "POST",
        JOBS,
        jobs.create_job,
        _doc(
            "Submit a corpus of any size",
            "Jobs",
            202,
            schemas.JobObject,
            {"requestBody": corpus, "parameters": [*options, key], "responses": {"200": estimate}},
        ),
    )
    yield (
        "GET",
        JOBS,
        jobs.list_jobs,
        _doc(
            "List jobs, newest first",
            "Jobs",
            200,
            schemas.JobList,
            {
                "parameters": [
                    _query("limit", "1 to 100"),
                    _query("after", "Id of the last job seen"),
                    _query("status", ""),
                ]
            },
        ),
    )
    one = f"{JOBS}/{{job_id}}"
    wait = _query("wait", "Seconds, up to 60, to hold the answer until the job changes or ends")
    tag = {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
    yield (
        "GET",
        one,
        jobs.get_job,
        _doc("Poll a job", "Jobs", 200, schemas.JobObject, {"parameters": [_id(), wait, tag]}),
    )
    yield (
        "DELETE",
        one,
        jobs.delete_job,
        _doc("Delete a job and its results", "Jobs", 200, None, {"parameters": [_id()]}),
    )
    ceiling = _body({JSON: schemas.ResumeRequest}) | {"required": False}
    for verb, endpoint, summary, extra in (
        ("cancel", jobs.cancel_job, "Cancel a job; finished work is kept", {}),
        ("pause", jobs.pause_job, "Pause a job: no new calls until it is resumed", {}),
        (
            "resume",
            jobs.resume_job,
            "Let a paused job go on, under a new ceiling if you like",
            {"requestBody": ceiling},
        ),
        ("retry", jobs.retry_job, "Try the failed inputs of a finished job again, into the same job", {}),
    ):
        yield (
            "POST",
            f"{one}/{verb}",
            endpoint,
            _doc(summary, "Jobs", 200, schemas.JobObject, {"parameters": [_id()], **extra}),
        )
    ranged = [
        _query("format", "ndjson or npy"),
        _query("encoding_format", "float or base64, for ndjson"),
        _query("start", "First index"),
        _query("stop", "Index after the last"),
    ]
    yield (
        "GET",
        f"{one}/results",
        jobs.get_results,
        _doc("Vectors in index order, while the job runs too", "Jobs", 200, None, {"parameters": [_id(), *ranged]}),
    )
    yield (
        "GET",
        f"{one}/errors",
        jobs.get_errors,
        _doc("Inputs that failed, as ndjson", "Jobs", 200, None, {"parameters": [_id()]}),
    )
    yield "GET", "/v1/models", models.list_models, _doc("List models", "Models", 200, None, {})
    yield (
        "GET",
        "/v1/models/{model:path}",
        models.get_model,
        _doc("One model", "Models", 200, None, {"parameters": [_id("model", "Name of the model")]}),
    )
    for path, endpoint, summary in (
        ("/healthz", operations.healthz, "The process lives"),
        ("/readyz", operations.readyz, "Database, broker and workers answer"),
        ("/metrics", operations.metrics, "Prometheus metrics"),
    ):
        yield "GET", path, endpoint, _doc(summary, "Operations", 200, None, {"security": []})


def install(app: FastAPI) -> None:
    """Add our schemas and the key's scheme to the document that FastAPI makes."""
    made = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            body = made()
            _, components = msgspec.json.schema_components(schemas.DOCUMENTED, ref_template=REF)
            parts = body.setdefault("components", {})
            parts.setdefault("schemas", {}).update(components)
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            body["security"] = [{"key": []}]
            app.openapi_schema = body
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _doc(summary: str, tag: str, status: int, answer: type | None, extra: dict[str, Any]) -> dict[str, Any]:
    failure = {"description": "An error", "content": {JSON: {"schema": _ref(schemas.ErrorEnvelope)}}}
    success: dict[str, Any] = {"description": "Done"}
    if answer is not None:
        success["content"] = {JSON: {"schema": _ref(answer)}}
    return {
        "summary": summary,
        "tags": [tag],
        "status_code": status,
        "responses": {status: success, "4XX": failure, "5XX": failure},
        "openapi_extra": extra,
    }


def _body(kinds: dict[str, type]) -> dict[str, Any]:
    return {"required": True, "content": {kind: {"schema": _ref(struct)} for kind, struct in kinds.items()}}


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": REF.format(name=struct.__name__)}


def _query(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": "string"}}


def _id(name: str = "job_id", description: str = "Id of the job") -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}
