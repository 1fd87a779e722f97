"""/v1/webhook_endpoints: the endpoints of a project, as `client.webhooks` of the OpenAI SDKs calls them."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response

from api.http import params, request_body
from api.http.auth import caller_of, runtime_of
from api.http.json_response import json_response, page_response
from api.http.webhook_schemas import WebhookCreate, WebhookRotate, WebhookTest, WebhookUpdate
from api.http.webhooks import event_types_of, sample_events_of, target_policy_of
from api.webhooks.render import endpoint_object
from engine.embedding.body_errors import decode
from engine.webhooks import endpoints
from models.webhook import EventType

MAX_BODY_BYTES = 64 * 1024
_CREATE = msgspec.json.Decoder(WebhookCreate)
_UPDATE = msgspec.json.Decoder(WebhookUpdate)
_ROTATE = msgspec.json.Decoder(WebhookRotate)
_TEST = msgspec.json.Decoder(WebhookTest)
Body = TypeVar("Body", bound=msgspec.Struct)


async def create_webhook_endpoint(request: Request) -> Response:
    """Create an endpoint; the only answer with its secret."""
    body = await _read(request, _CREATE)
    event_types = event_types_of(body.event_types)
    runtime = runtime_of(request)
    row = await endpoints.create_endpoint(
        runtime.database,
        caller_of(request).project,
        name=body.name,
        url=await target_policy_of(request).check(body.url),
        event_types=event_types,
        limit=runtime.settings.max_webhook_endpoints,
    )
    return json_response(endpoint_object(row, with_secret=True))


async def list_webhook_endpoints(request: Request) -> Response:
    """A page of the project's endpoints, newest first."""
    params.reject_unknown_params(request, "limit", "after")
    rows, has_more = await endpoints.list_endpoints(
        runtime_of(request).database,
        caller_of(request).project,
        limit=params.int_param(request, "limit", default=20, low=1, high=100) or 20,
        after_id=request.query_params.get("after"),
    )
    return page_response([endpoint_object(row) for row in rows], has_more=has_more)


async def get_webhook_endpoint(request: Request) -> Response:
    """One endpoint."""
    params.reject_unknown_params(request)
    row = await endpoints.get_endpoint(runtime_of(request).database, *_path(request))
    return json_response(endpoint_object(row))


async def update_webhook_endpoint(request: Request) -> Response:
    """Change an endpoint, and enable it if it was disabled."""
    body = await _read(request, _UPDATE)
    row = await endpoints.update_endpoint(
        runtime_of(request).database,
        *_path(request),
        name=body.name,
        url=None if body.url is None else await target_policy_of(request).check(body.url),
        event_types=None if body.event_types is None else event_types_of(body.event_types),
    )
    return json_response(endpoint_object(row))


async def delete_webhook_endpoint(request: Request) -> Response:
    """Delete an endpoint; what is not delivered yet is not sent any more."""
    params.reject_unknown_params(request)
    project, endpoint_id = _path(request)
    await endpoints.delete_endpoint(runtime_of(request).database, project, endpoint_id)
    return json_response({"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True})


async def rotate_webhook_secret(request: Request) -> Response:
    """Give an endpoint a new secret; the only answer that shows it."""
    body = await _read(request, _ROTATE, default=b"{}")
    row = await endpoints.rotate_secret(
        runtime_of(request).database, *_path(request), keep_old=bool(body.keep_old_secret_active_for_24_hours)
    )
    return json_response(endpoint_object(row, with_secret=True))


async def test_webhook_endpoint(request: Request) -> Response:
    """Send a sample event now. The receiver's status is in the answer, an error too."""
    body = await _read(request, _TEST)
    [event_type] = event_types_of([body.event_type])
    row = await endpoints.get_endpoint(runtime_of(request).database, *_path(request))
    status = await sample_events_of(request).send(row, event_type)
    return json_response(
        {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": row.id,
            "event_type": event_type,
            "status_code": status,
            # As in OpenAI's API: the test took place. Whether the receiver accepted it, its status says.
            "success": True,
        }
    )


async def list_webhook_event_types(request: Request) -> Response:
    """What can be subscribed to."""
    params.reject_unknown_params(request)
    return json_response({"object": "list", "data": list(EventType)})


def _path(request: Request) -> tuple[str, str]:
    return caller_of(request).project, request.path_params["endpoint_id"]


async def _read(request: Request, decoder: msgspec.json.Decoder[Body], *, default: bytes = b"") -> Body:
    params.reject_unknown_params(request)
    body = await request_body.read_body(request, MAX_BODY_BYTES)
    return decode(decoder, body if body.strip() else default)
