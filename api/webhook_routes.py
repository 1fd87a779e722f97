"""The routes of webhooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from api.http import webhook_schemas as schemas
from api.http.openapi import JSON, json_body, operation, path_param, query_param
from api.http.route_spec import RouteSpec
from api.webhooks import deliveries, endpoints

ENDPOINTS = "/v1/webhook_endpoints"
ONE_ENDPOINT = f"{ENDPOINTS}/{{endpoint_id}}"
DELIVERIES = f"{ONE_ENDPOINT}/deliveries"
TAG = "Webhooks"
ENDPOINT_ID = path_param("endpoint_id", "Id of the endpoint")
PAGE = [query_param("limit", "1 to 100"), query_param("after", "The last_id of the page before")]


def webhook_routes() -> Iterator[RouteSpec]:
    """Every route of webhooks."""
    yield from _endpoints()
    yield from _deliveries()


def _endpoints() -> Iterator[RouteSpec]:
    endpoint = schemas.WebhookEndpointObject
    one: dict[str, Any] = {"parameters": [ENDPOINT_ID]}
    create = {"requestBody": json_body({JSON: schemas.WebhookCreate})}
    update = one | {"requestBody": json_body({JSON: schemas.WebhookUpdate})}
    rotate = one | {"requestBody": json_body({JSON: schemas.WebhookRotate}) | {"required": False}}
    test = one | {"requestBody": json_body({JSON: schemas.WebhookTest})}
    yield RouteSpec(
        "POST",
        ENDPOINTS,
        endpoints.create_webhook_endpoint,
        operation("Have events sent to a URL", TAG, 200, endpoint, create),
    )
    yield RouteSpec(
        "GET",
        ENDPOINTS,
        endpoints.list_webhook_endpoints,
        operation("List endpoints, newest first", TAG, 200, schemas.WebhookEndpointList, {"parameters": PAGE}),
    )
    yield RouteSpec(
        "GET", ONE_ENDPOINT, endpoints.get_webhook_endpoint, operation("One endpoint", TAG, 200, endpoint, one)
    )
    yield RouteSpec(
        "POST",
        ONE_ENDPOINT,
        endpoints.update_webhook_endpoint,
        operation("Change an endpoint, and enable it if it was disabled", TAG, 200, endpoint, update),
    )
    yield RouteSpec(
        "DELETE", ONE_ENDPOINT, endpoints.delete_webhook_endpoint, operation("Delete an endpoint", TAG, extra=one)
    )
    yield RouteSpec(
        "POST",
        f"{ONE_ENDPOINT}/rotate_secret",
        endpoints.rotate_webhook_secret,
        operation("A new signing secret", TAG, 200, endpoint, rotate),
    )
    yield RouteSpec(
        "POST",
        f"{ONE_ENDPOINT}/test",
        endpoints.test_webhook_endpoint,
        operation("Send a sample event now", TAG, 200, schemas.WebhookTestResult, test),
    )
    yield RouteSpec(
        "GET",
        "/v1/webhook_event_types",
        endpoints.list_webhook_event_types,
        operation("What can be subscribed to", TAG, 200, schemas.WebhookEventTypes),
    )


def _deliveries() -> Iterator[RouteSpec]:
    state = query_param("state", "pending, delivered or dead")
    yield RouteSpec(
        "GET",
        DELIVERIES,
        deliveries.list_webhook_deliveries,
        operation(
            "Deliveries to an endpoint, newest first",
            TAG,
            200,
            schemas.WebhookDeliveryList,
            {"parameters": [ENDPOINT_ID, *PAGE, state]},
        ),
    )
    yield RouteSpec(
        "POST",
        f"{DELIVERIES}/{{event_id}}/replay",
        deliveries.replay_webhook_delivery,
        operation(
            "Send an event again, under its id",
            TAG,
            200,
            schemas.WebhookDeliveryObject,
            {"parameters": [ENDPOINT_ID, path_param("event_id", "Id of the event")]},
        ),
    )
