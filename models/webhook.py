"""Webhooks: endpoints of projects and jobs, events, and their deliveries (Standard Webhooks)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class EventType(StrEnum):
    """What can be reported to a webhook."""

    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"
    JOB_COMPLETED = "embedding.job.completed"  # also with errors of single inputs
    JOB_FAILED = "embedding.job.failed"
    JOB_EXPIRED = "embedding.job.expired"
    JOB_CANCELLED = "embedding.job.cancelled"
    JOB_PAUSED = "embedding.job.paused"
    JOB_PROGRESS = "embedding.job.progress"  # at 25, 50 and 75 %


class DeliveryState(StrEnum):
    """The states of a delivery."""

    PENDING = "pending"  # not sent yet, or to be sent again at `next_attempt_at`
    DELIVERED = "delivered"
    DEAD = "dead"  # given up; the owner may replay it


class WebhookEndpoint(Base):
    """Where events of a project are sent. With `job_id`: of that job alone, set by its submitter, and not listed."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(256))
    url: Mapped[str] = mapped_column(Text)
    # The signing secret (`whsec_…`), and the one before it while that is still used too.
    secret: Mapped[str] = mapped_column(String(256))
    previous_secret: Mapped[str | None] = mapped_column(String(256))
    previous_secret_until: Mapped[float | None] = mapped_column(Instant)
    event_types: Mapped[list[Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Instant)
    updated_at: Mapped[float | None] = mapped_column(Instant)
    # A receiver that answered 410, or was given up. An update of the endpoint enables it again.
    disabled_at: Mapped[float | None] = mapped_column(Instant)
    disabled_reason: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        # Those of the project: a project may have many jobs with one of their own.
        Index(
            "ix_webhook_endpoints_project_id",
            "project",
            "id",
            postgresql_where=text("job_id is null"),
            sqlite_where=text("job_id is null"),
        ),
        Index("ix_webhook_endpoints_job_id", "job_id"),
    )


class WebhookEvent(Base):
    """One thing that happened, inserted in the transaction that made it happen. Its id is the receiver's dedupe key."""

    __tablename__ = "webhook_events"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    type: Mapped[str] = mapped_column(String(48))
    subject_id: Mapped[str] = mapped_column(String(64))  # the batch or job
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_webhook_events_project_id", "project", "id"),
        Index("ix_webhook_events_created_at", "created_at"),
    )


class WebhookDelivery(Base):
    """One event on its way to one endpoint."""

    __tablename__ = "webhook_deliveries"

    event_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("webhook_events.id", ondelete="CASCADE"), primary_key=True
    )
    endpoint_id: Mapped[str] = mapped_column(
        String(64), ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), primary_key=True
    )
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_attempt_at: Mapped[float | None] = mapped_column(Instant)
    lease_until: Mapped[float | None] = mapped_column(Instant)
    delivered_at: Mapped[float | None] = mapped_column(Instant)
    last_attempt_at: Mapped[float | None] = mapped_column(Instant)
    last_status: Mapped[int | None] = mapped_column(Integer)
    last_error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_webhook_deliveries_endpoint_id_event_id", "endpoint_id", "event_id"),
        Index(
            "ix_webhook_deliveries_next_attempt_at",
            "next_attempt_at",
            postgresql_where=text("state = 'pending'"),
            sqlite_where=text("state = 'pending'"),
        ),
    )
