"""Wire models of webhooks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

# Kept in text columns, which cannot hold NUL.
EndpointName = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"\A[^\x00]*\Z")]


class JobWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """Where the events of one job are sent. Without `secret` the answer shows a new one."""

    url: str
    secret: str | None = None
    event_types: list[str] | None = None  # all of a job, if left out


class WebhookCreate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/webhook_endpoints."""

    name: EndpointName
    url: str
    event_types: list[str]


class WebhookUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/webhook_endpoints/{id}: what is left out stays as it is."""

    name: EndpointName | None = None
    url: str | None = None
    event_types: list[str] | None = None


class WebhookRotate(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/webhook_endpoints/{id}/rotate_secret; the body may be left out."""

    keep_old_secret_active_for_24_hours: bool | None = None


class WebhookTest(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/webhook_endpoints/{id}/test."""

    event_type: str


class WebhookEndpointObject(msgspec.Struct):
    """An endpoint. `signing_secret` is shown once, when it is created and when it is rotated."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    disabled_at: int | None  # set by a receiver that answered 410; an update enables the endpoint
    disabled_reason: str | None
    signing_secret: str | msgspec.UnsetType = msgspec.UNSET


class WebhookEndpointList(msgspec.Struct):
    """A page of endpoints, newest first."""

    object: Literal["list"]
    data: list[WebhookEndpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookDeliveryObject(msgspec.Struct):
    """One event on its way to one endpoint."""

    id: str  # of the event: the header webhook-id
    object: Literal["webhook_delivery"]
    type: str
    subject_id: str
    state: Literal["pending", "delivered", "dead"]
    attempts: int
    created_at: int
    next_attempt_at: int | None
    last_attempt_at: int | None
    delivered_at: int | None
    last_status: int | None
    last_error: str | None


class WebhookDeliveryList(msgspec.Struct):
    """A page of deliveries, newest first."""

    object: Literal["list"]
    data: list[WebhookDeliveryObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookTestResult(msgspec.Struct):
    """The receiver answered a test, with this status."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: bool


class WebhookEventTypes(msgspec.Struct):
    """What can be subscribed to."""

    object: Literal["list"]
    data: list[str]


DOCUMENTED: tuple[Any, ...] = (
    WebhookCreate,
    WebhookUpdate,
    WebhookRotate,
    WebhookTest,
    WebhookEndpointObject,
    WebhookEndpointList,
    WebhookDeliveryObject,
    WebhookDeliveryList,
    WebhookTestResult,
    WebhookEventTypes,
)
