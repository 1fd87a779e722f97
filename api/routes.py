"""Every route of the API: method, path, endpoint, and its part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator

from api import health
from api.dialects.table import TABLE
from api.http import schemas
from api.http.model_schemas import EndpointList
from api.http.openapi import BINARY, IDEMPOTENCY_KEY, JSON, json_body, operation, path_param, query_param, schema_ref
from api.http.route_spec import RouteSpec
from api.jobs import control, job_routes, results, status
from api.jobs.submit import create_job
from api.openai import batch_routes, deployments, embeddings, file_routes, model_endpoints, models
from api.webhook_routes import webhook_routes
from engine.embedding.request_body import EmbeddingRequest

JOBS = "/v1/embeddings/jobs"
ONE_JOB = f"{JOBS}/{{job_id}}"
STREAM_OPTIONS = (
    *("model", "dimensions", "input_type", "truncate", "user", "metadata", "max_cost_usd", "webhook", "dry_run"),
    *("text_column", "id_column"),
)
IF_NONE_MATCH = {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}}
JOB_ID = path_param("job_id", "Id of the job")


def all_routes() -> Iterator[RouteSpec]:
    """Every route; the order is that of the document."""
    body = {"requestBody": json_body({JSON: EmbeddingRequest})}
    yield RouteSpec(
        "POST",
        "/v1/embeddings",
        embeddings.create_embeddings,
        operation("Embed up to 2,048 inputs now", "Sync", 200, schemas.EmbeddingResponse, body),
    )
    for path, endpoint, summary in (
        ("/openai/deployments/{model:path}/embeddings", deployments.create_deployment_embeddings, "Azure's path"),
        ("/v1/engines/{model:path}/embeddings", deployments.create_engine_embeddings, "the path of early clients"),
    ):
        parameters = {"parameters": [path_param("model", "Name of the model; it wins over that of the body")]}
        yield RouteSpec(
            "POST",
            path,
            endpoint,
            operation(
                f"POST /v1/embeddings by {summary}", "Compatibility", 200, schemas.EmbeddingResponse, body | parameters
            ),
        )
    for entry in TABLE:
        yield RouteSpec(entry.method, entry.path, entry.endpoint, entry.documentation(), entry.route_class)
    yield from _submit_and_status()
    yield from _job_control()
    yield from _job_outcomes()
    yield from file_routes.all_routes()
    yield from batch_routes.all_routes()
    yield RouteSpec("GET", "/v1/models", models.list_models, operation("List models", "Models"))
    model = {"parameters": [path_param("model", "Name of the model")]}
    # Before the route of one model, which takes any path.
    yield RouteSpec(
        "GET",
        "/v1/models/{model:path}/endpoints",
        model_endpoints.list_endpoints,
        operation("The routes of a model, and how each of them does", "Models", 200, EndpointList, model),
    )
    yield RouteSpec("GET", "/v1/models/{model:path}", models.get_model, operation("One model", "Models", extra=model))
    yield from webhook_routes()
    for path, endpoint, summary in (
        ("/healthz", health.healthz, "The process lives"),
        ("/readyz", health.readyz, "Database, broker and workers answer"),
        ("/metrics", health.metrics, "Prometheus metrics"),
        ("/health", health.health, "The process lives"),
        ("/ping", health.ping, "The process lives"),
        ("/version", health.version, "The version of embedmill"),
    ):
        yield RouteSpec("GET", path, endpoint, operation(summary, "Operations", extra={"security": []}))


def _submit_and_status() -> Iterator[RouteSpec]:
    corpus = json_body({JSON: schemas.JobRequest})
    streamed = ("application/x-ndjson", "text/plain", "text/csv", "application/vnd.apache.parquet")
    corpus["content"] |= dict.fromkeys(streamed, BINARY)
    options = [query_param(name, "Streamed forms only; in a JSON body it is a field.") for name in STREAM_OPTIONS]
    estimate = {"description": "With `dry_run`", "content": {JSON: {"schema": schema_ref(schemas.JobEstimate)}}}
    submit = {
        "requestBody": corpus,
        "parameters": [*options, IDEMPOTENCY_KEY],
        "responses": {"200": estimate},
    }
    yield RouteSpec(
        "POST", JOBS, create_job, operation("Submit a corpus of any size", "Jobs", 202, schemas.JobObject, submit)
    )
    page = [
        query_param("limit", "1 to 100"),
        query_param("after", "Id of the last job seen"),
        query_param("status", ""),
    ]
    yield RouteSpec(
        "GET",
        JOBS,
        status.list_jobs,
        operation("List jobs, newest first", "Jobs", 200, schemas.JobList, {"parameters": page}),
    )
    wait = query_param("wait", "Seconds, up to 60, to hold the answer until the job changes or ends")
    yield RouteSpec(
        "GET",
        ONE_JOB,
        status.get_job,
        operation("Poll a job", "Jobs", 200, schemas.JobObject, {"parameters": [JOB_ID, wait, IF_NONE_MATCH]}),
    )


def _job_control() -> Iterator[RouteSpec]:
    yield RouteSpec(
        "DELETE",
        ONE_JOB,
        control.delete_job,
        operation("Delete a job and its results", "Jobs", extra={"parameters": [JOB_ID]}),
    )
    ceiling = {"requestBody": json_body({JSON: schemas.ResumeRequest}) | {"required": False}}
    for action, endpoint, summary, extra in (
        ("cancel", control.cancel_job, "Cancel a job; finished work is kept", {}),
        ("pause", control.pause_job, "Pause a job: no new calls until it is resumed", {}),
        ("resume", control.resume_job, "Let a paused job go on, under a new ceiling if you like", ceiling),
        ("retry", control.retry_job, "Try the failed inputs of a finished job again, into the same job", {}),
    ):
        yield RouteSpec(
            "POST",
            f"{ONE_JOB}/{action}",
            endpoint,
            operation(summary, "Jobs", 200, schemas.JobObject, {"parameters": [JOB_ID], **extra}),
        )


def _job_outcomes() -> Iterator[RouteSpec]:
    index_range = [
        query_param("format", "ndjson, npy, parquet or arrow"),
        query_param("encoding_format", "float or base64, for ndjson"),
        query_param("start", "First index"),
        query_param("stop", "Index after the last"),
    ]
    yield RouteSpec(
        "GET",
        f"{ONE_JOB}/results",
        results.get_results,
        operation(
            "Vectors in index order, while the job runs too", "Jobs", extra={"parameters": [JOB_ID, *index_range]}
        ),
    )
    yield RouteSpec(
        "GET",
        f"{ONE_JOB}/errors",
        results.get_errors,
        operation("Inputs that failed, as ndjson", "Jobs", extra={"parameters": [JOB_ID]}),
    )
    yield RouteSpec(
        "GET",
        f"{ONE_JOB}/routes",
        job_routes.get_job_routes,
        operation("The routes that embedded its inputs", "Jobs", 200, schemas.JobRoutes, {"parameters": [JOB_ID]}),
    )
