"""The routes of batches, and their part of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator

from api.http.batch_schemas import BatchCreate, BatchList, BatchObject
from api.http.openapi import IDEMPOTENCY_KEY, JSON, json_body, operation, path_param, query_param
from api.http.route_spec import RouteSpec
from api.openai import batch_results, batches

BATCHES = "/v1/batches"
ONE_BATCH = f"{BATCHES}/{{batch_id}}"
BATCH_ID = path_param("batch_id", "Id of the batch")


def all_routes() -> Iterator[RouteSpec]:
    """Every route of batches."""
    create = {"requestBody": json_body({JSON: BatchCreate}), "parameters": [IDEMPOTENCY_KEY]}
    yield RouteSpec(
        "POST",
        BATCHES,
        batches.create_batch,
        operation("Run the requests of a file, or of the body, as one job", "Batches", 200, BatchObject, create),
    )
    page = [query_param("limit", "1 to 100"), query_param("after", "Id of the last batch seen")]
    yield RouteSpec(
        "GET",
        BATCHES,
        batches.list_batches,
        operation("List batches, newest first", "Batches", 200, BatchList, {"parameters": page}),
    )
    one = {"parameters": [BATCH_ID]}
    yield RouteSpec("GET", ONE_BATCH, batches.get_batch, operation("One batch", "Batches", 200, BatchObject, one))
    page = [
        query_param("limit", "Lines at the most"),
        query_param("after", "custom_id, or id, of the last line that was read"),
    ]
    yield RouteSpec(
        "GET",
        f"{ONE_BATCH}/results",
        batch_results.get_batch_results,
        operation(
            "Results of a batch in the order of its input, as the lines of its files; while it runs too",
            "Batches",
            extra={"parameters": [BATCH_ID, *page]},
        ),
    )
    yield RouteSpec(
        "POST",
        f"{ONE_BATCH}/cancel",
        batches.cancel_batch,
        operation("Cancel a batch; finished work is kept", "Batches", 200, BatchObject, one),
    )
