"""Who is alive: one row per worker process, renewed by its own heartbeat."""

from __future__ import annotations

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class WorkerProcess(Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    slots: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[float] = mapped_column(Instant)
    seen_at: Mapped[float] = mapped_column(Instant)
