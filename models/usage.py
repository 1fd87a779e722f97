"""The ledger: all tokens that a provider bills, with project, cost and result. Rows are only inserted."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from sqlalchemy import BigInteger, Boolean, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant, Usd


class UsageKind(StrEnum):
    """The result of a call that a provider has billed, or may have billed."""

    DELIVERED = "delivered"  # its vectors were stored or returned
    WASTED = "wasted"  # its reply was refused, was too late, or was a probe
    AMBIGUOUS = "ambiguous"  # sent and not answered: estimated tokens, upper bound of the cost


# The project of calls that serve no caller: drift checks.
OPERATOR_PROJECT = ""


class UsageRecord(Base):
    """One sync call, one recorded part of a shard, or one call without a usable reply. Outlives its job."""

    __tablename__ = "usage"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    at: Mapped[float] = mapped_column(Instant)
    lane: Mapped[str] = mapped_column(String(16))
    job_id: Mapped[str | None] = mapped_column(String(64))
    alias: Mapped[str] = mapped_column(String(256))
    provider: Mapped[str] = mapped_column(String(64))
    upstream_model: Mapped[str] = mapped_column(String(256))
    user: Mapped[str | None] = mapped_column("end_user", String(256))
    inputs: Mapped[int] = mapped_column(Integer)
    calls: Mapped[int] = mapped_column(Integer)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[Decimal] = mapped_column(Usd)
    # The route's price at the time of the call. Null: unknown, as of rows that releases before revision 0014 wrote.
    usd_per_million_tokens: Mapped[Decimal | None] = mapped_column(Usd)
    estimated: Mapped[bool] = mapped_column(Boolean)
    kind: Mapped[str] = mapped_column(String(16), default=UsageKind.DELIVERED, server_default=UsageKind.DELIVERED)
    code: Mapped[str | None] = mapped_column(String(64))  # why it was not delivered

    __table_args__ = (Index("ix_usage_project_at", "project", "at"), Index("ix_usage_job_id", "job_id"))
