"""Worker processes: one row each, renewed by its heartbeat."""

from __future__ import annotations

from sqlalchemy import Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class WorkerProcess(Base):
    """One worker process, alive while `seen_at` is recent. `slots`: how many shards it runs at a time."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    slots: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[float] = mapped_column(Instant)
    seen_at: Mapped[float] = mapped_column(Instant)
