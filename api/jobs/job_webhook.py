"""The webhook of one job, as its submitter names it: in the JSON body, or in the query beside a streamed corpus."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request

from api.http.auth import runtime_of
from api.http.webhook_schemas import JobWebhook
from api.http.webhooks import event_types_of, target_policy_of
from engine.embedding.body_errors import decode
from engine.webhooks.endpoints import JOB_EVENTS, WebhookSpec, endpoints_of_job
from engine.webhooks.signature import check_secret
from models.errors import InvalidInput

_WEBHOOK = msgspec.json.Decoder(JobWebhook)
PARAM = "webhook"


def parse_query(text: str | None) -> JobWebhook | None:
    """The query parameter `webhook`: a URL, or the object of a JSON body. Raises InvalidInput."""
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return JobWebhook(text)
    try:
        return decode(_WEBHOOK, text.encode())
    except (InvalidInput, UnicodeError) as error:
        raise InvalidInput(
            "Invalid 'webhook': expected a URL, or a JSON object of url, secret and event_types.",
            param=PARAM,
            code="invalid_value",
        ) from error


async def check_webhook(request: Request, webhook: JobWebhook | None) -> WebhookSpec | None:
    """The webhook, checked. Raises InvalidInput that names the field."""
    if webhook is None:
        return None
    return WebhookSpec(
        url=await target_policy_of(request).check(webhook.url, f"{PARAM}.url"),
        secret=None if webhook.secret is None else check_secret(webhook.secret, f"{PARAM}.secret"),
        event_types=JOB_EVENTS
        if webhook.event_types is None
        else event_types_of(webhook.event_types, among=JOB_EVENTS),
    )


async def created_webhook(request: Request, job_id: str, spec: WebhookSpec | None) -> dict[str, Any]:
    """What the answer to a submission says of the job's webhook: the only one with the secret. Empty without one."""
    if spec is None:
        return {}
    for row in await endpoints_of_job(runtime_of(request).database, job_id):
        return {PARAM: {"id": row.id, "url": row.url, "event_types": row.event_types, "secret": row.secret}}
    return {}
