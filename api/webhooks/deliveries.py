"""/v1/webhook_endpoints/{id}/deliveries: what was sent, what was given up, and how to send it again."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from api.http import params
from api.http.auth import caller_of, runtime_of
from api.http.json_response import json_response, page_response
from api.webhooks.render import delivery_object
from engine.webhooks import deliveries
from models.errors import InvalidInput
from models.webhook import DeliveryState


async def list_webhook_deliveries(request: Request) -> Response:
    """A page of an endpoint's deliveries, newest first."""
    params.reject_unknown_params(request, "limit", "after", "state")
    state = request.query_params.get("state")
    if state is not None and state not in tuple(DeliveryState):
        raise InvalidInput(
            f"Invalid 'state': supported are {', '.join(DeliveryState)}.", param="state", code="invalid_value"
        )
    rows, has_more = await deliveries.list_deliveries(
        runtime_of(request).database,
        caller_of(request).project,
        request.path_params["endpoint_id"],
        limit=params.int_param(request, "limit", default=20, low=1, high=100) or 20,
        after_id=request.query_params.get("after"),
        state=state,
    )
    return page_response([delivery_object(row) for row in rows], has_more=has_more)


async def replay_webhook_delivery(request: Request) -> Response:
    """Send an event again, under its id."""
    params.reject_unknown_params(request)
    path = request.path_params
    row = await deliveries.replay(
        runtime_of(request).database, caller_of(request).project, path["endpoint_id"], path["event_id"]
    )
    return json_response(delivery_object(row))
