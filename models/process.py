"""Processes of an installation: one row each, with its version, renewed by its heartbeat."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class ServiceProcess(Base):
    """One process, shown to operators. The table `workers` decides which workers are alive."""

    __tablename__ = "service_processes"

    id: Mapped[str] = mapped_column(String(192), primary_key=True)
    service: Mapped[str] = mapped_column(String(16))  # api, worker or scheduler
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[float] = mapped_column(Instant)
    seen_at: Mapped[float] = mapped_column(Instant)
