"""Outages of routes. A row exists while the outage lasts, and every process reads it."""

from __future__ import annotations

from sqlalchemy import Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class RouteOutage(Base):
    """The outage of one route. Deleting the row lets every process call the route again."""

    __tablename__ = "route_outages"

    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    upstream_model: Mapped[str] = mapped_column(String(256), primary_key=True)
    code: Mapped[str] = mapped_column(String(64))
    message: Mapped[str] = mapped_column(Text)
    advice: Mapped[str] = mapped_column(Text)
    status: Mapped[int | None] = mapped_column(Integer)  # of the HTTP reply, where there was one
    since: Mapped[float] = mapped_column(Instant)
    # Consecutive failed health probes. The process that moves `next_attempt_at` into the future makes the next one.
    failures: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    next_attempt_at: Mapped[float] = mapped_column(Instant)
    probe_until: Mapped[float | None] = mapped_column(Instant)  # while a process makes a health probe
