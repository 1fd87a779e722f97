"""Endpoints: where a project, or one job alone, has its events sent. Those of single jobs are not listed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from engine.storage.database import Database
from engine.webhooks.signature import check_secret, new_secret
from engine.webhooks.targets import CheckedUrl
from models.base import db_now, new_id
from models.errors import InvalidInput, WebhookNotFound
from models.webhook import EventType, WebhookEndpoint

JOB_EVENTS = tuple(each for each in EventType if each.startswith("embedding.job."))
BATCH_EVENTS = tuple(each for each in EventType if each.startswith("batch."))
ENDPOINT_ID = re.compile(r"we_[0-9a-f]{32}\Z")
OLD_SECRET_S = 86_400.0  # that the secret before a rotation may stay valid
_COLUMNS = (*WebhookEndpoint.__table__.columns, db_now().label("now"))


@dataclass(frozen=True, slots=True)
class WebhookSpec:
    """Where a caller wants the events of one job. Without `secret` a new one is made."""

    url: CheckedUrl
    secret: str | None = None
    event_types: Collection[EventType] = JOB_EVENTS


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


async def attach_requested(
    connection: AsyncConnection, webhook: WebhookSpec | None, *, project: str, job_id: str
) -> None:
    """Attach the webhook that a job's submitter asked for, if any. For the transaction that inserts the job."""
    if webhook is not None:
        await attach_webhook(
            connection,
            project=project,
            job_id=job_id,
            url=webhook.url,
            secret=webhook.secret,
            event_types=webhook.event_types,
        )


async def endpoints_of_job(database: Database, job_id: str) -> Sequence[Row[Any]]:
    """The endpoints of this job alone. The caller has checked the access to the job before."""
    async with database.read() as connection:
        return (await connection.execute(select(*_COLUMNS).where(WebhookEndpoint.job_id == job_id))).all()


async def create_endpoint(
    database: Database, project: str, *, name: str, url: CheckedUrl, event_types: Sequence[EventType], limit: int
) -> Row[Any]:
    """A new endpoint of the project, its row with the secret. Raises InvalidInput when the project has `limit`."""
    async with database.write() as connection:
        count = select(func.count()).select_from(WebhookEndpoint).where(_of_project(project))
        if (await connection.execute(count)).scalar_one() >= limit:
            raise InvalidInput(
                f"This project has {limit} webhook endpoints, and may have no more: delete one first.",
                code="too_many_webhook_endpoints",
            )
        created = await connection.execute(
            insert(WebhookEndpoint)
            .values(
                id=new_id("we"),
                project=project,
                name=name,
                url=url,
                secret=new_secret(),
                event_types=[str(each) for each in event_types],
                created_at=db_now(),
                updated_at=db_now(),
            )
            .returning(*_COLUMNS)
        )
        return created.one()


async def get_endpoint(database: Database, project: str, endpoint_id: str) -> Row[Any]:
    """The endpoint's row. Raises WebhookNotFound, alike for another project's, an unknown and a malformed id."""
    if ENDPOINT_ID.match(endpoint_id):
        async with database.read() as connection:
            found = await connection.execute(select(*_COLUMNS).where(_one(project, endpoint_id)))
            row = found.one_or_none()
        if row is not None:
            return row
    raise _not_found()


async def list_endpoints(
    database: Database, project: str, *, limit: int, after_id: str | None
) -> tuple[Sequence[Row[Any]], bool]:
    """A page of the project's endpoints, newest first, after the given id; and whether there are more."""
    statement = select(*_COLUMNS).where(_of_project(project))
    if after_id is not None:
        if not ENDPOINT_ID.match(after_id):
            raise InvalidInput(
                "Invalid 'after': not the id of a webhook endpoint. Send the last_id of the page before.",
                param="after",
                code="invalid_value",
            )
        statement = statement.where(WebhookEndpoint.id < after_id)
    async with database.read() as connection:
        rows = (await connection.execute(statement.order_by(WebhookEndpoint.id.desc()).limit(limit + 1))).all()
    return rows[:limit], len(rows) > limit


async def update_endpoint(
    database: Database,
    project: str,
    endpoint_id: str,
    *,
    name: str | None,
    url: CheckedUrl | None,
    event_types: Sequence[EventType] | None,
) -> Row[Any]:
    """Change what is not None, and enable an endpoint that was disabled. Raises WebhookNotFound."""
    endpoint = await get_endpoint(database, project, endpoint_id)
    changes: dict[str, Any] = {"name": name, "url": url}
    changes["event_types"] = None if event_types is None else [str(each) for each in event_types]
    changes = {key: value for key, value in changes.items() if value is not None and value != getattr(endpoint, key)}
    if not changes and endpoint.disabled_at is None:
        return endpoint
    changes |= {"updated_at": db_now(), "disabled_at": None, "disabled_reason": None}
    return await _change(database, project, endpoint_id, changes)


async def rotate_secret(database: Database, project: str, endpoint_id: str, *, keep_old: bool) -> Row[Any]:
    """A new signing secret; with `keep_old` deliveries of the next 24 hours are signed with both.

    Raises WebhookNotFound.
    """
    await get_endpoint(database, project, endpoint_id)
    changes = {
        "secret": new_secret(),
        "previous_secret": WebhookEndpoint.secret if keep_old else None,
        "previous_secret_until": db_now() + OLD_SECRET_S if keep_old else None,
        "updated_at": db_now(),
    }
    return await _change(database, project, endpoint_id, changes)


async def delete_endpoint(database: Database, project: str, endpoint_id: str) -> None:
    """Delete the endpoint and its deliveries. Raises WebhookNotFound."""
    await get_endpoint(database, project, endpoint_id)
    async with database.write() as connection:
        await connection.execute(delete(WebhookEndpoint).where(_one(project, endpoint_id)))


def active_secrets(endpoint: Row[Any], now: float) -> list[str]:
    """The secrets that deliveries are signed with at this instant, the newest first."""
    secrets = [endpoint.secret]
    if endpoint.previous_secret is not None and endpoint.previous_secret_until > now:
        secrets.append(endpoint.previous_secret)
    return secrets


async def _change(database: Database, project: str, endpoint_id: str, changes: dict[str, Any]) -> Row[Any]:
    async with database.write() as connection:
        changed = await connection.execute(
            update(WebhookEndpoint).where(_one(project, endpoint_id)).values(changes).returning(*_COLUMNS)
        )
        row = changed.one_or_none()
    if row is None:
        raise _not_found()
    return row


def _of_project(project: str) -> ColumnElement[bool]:
    return and_(WebhookEndpoint.project == project, WebhookEndpoint.job_id.is_(None))


def _one(project: str, endpoint_id: str) -> ColumnElement[bool]:
    return and_(WebhookEndpoint.id == endpoint_id, _of_project(project))


def _not_found() -> WebhookNotFound:
    return WebhookNotFound(
        "No webhook endpoint found with this id. GET /v1/webhook_endpoints lists those of this key's project.",
        param="id",
    )
