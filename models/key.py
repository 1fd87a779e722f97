"""A caller's credential to us. Only a keyed hash of it is stored."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class Scope(StrEnum):
    """What a key may be used for."""

    EMBEDDINGS = "embeddings"
    JOBS = "jobs"
    USAGE = "usage"
    ADMIN = "admin"


class ApiKey(Base):
    """One key. `digest` is a keyed hash of its secret; a revoked or expired key is refused."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(128))
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    scopes: Mapped[list[Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Instant)
    expires_at: Mapped[float | None] = mapped_column(Instant)
    revoked_at: Mapped[float | None] = mapped_column(Instant)
    last_used_at: Mapped[float | None] = mapped_column(Instant)
