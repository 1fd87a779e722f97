"""Endpoints: where a project, or one job alone, has its events sent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.webhooks.signature import check_secret, new_secret
from engine.webhooks.targets import CheckedUrl
from models.base import db_now, new_id
from models.webhook import EventType, WebhookEndpoint

JOB_EVENTS = tuple(each for each in EventType if each.startswith("embedding.job."))
BATCH_EVENTS = tuple(each for each in EventType if each.startswith("batch."))


@dataclass(frozen=True, slots=True)
class AttachedWebhook:
    """The webhook of one job. `secret`: what its deliveries are signed with; it is shown once, to whoever submits."""

    endpoint_id: str
    url: str
    secret: str


async def attach_webhook(
    connection: AsyncConnection,
    *,
    project: str,
    job_id: str,
    url: CheckedUrl,
    secret: str | None = None,
    event_types: Collection[EventType] = JOB_EVENTS,
) -> AttachedWebhook:
    """Send the events of one job, or of its batch, to this URL too. For the transaction that inserts the job.

    The URL is checked before, outside of any transaction, because a name may have to be resolved
    (TargetPolicy.check). Raises InvalidInput for a secret that is not well-formed.
    """
    signing_secret = new_secret() if secret is None else check_secret(secret, "webhook.secret")
    endpoint_id = new_id("we")
    await connection.execute(
        insert(WebhookEndpoint).values(
            id=endpoint_id,
            project=project,
            job_id=job_id,
            name="",
            url=url,
            secret=signing_secret,
            event_types=[str(each) for each in event_types],
            created_at=db_now(),
        )
    )
    return AttachedWebhook(endpoint_id, url, signing_secret)
