"""Space checks: whether a route of a model gives the vectors of the model's first route."""

from __future__ import annotations

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant


class SpaceCheck(Base):
    """The check of one route against the first route of its model. Deleting the row starts a new check."""

    __tablename__ = "space_checks"

    alias: Mapped[str] = mapped_column(String(256), primary_key=True)
    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    upstream_model: Mapped[str] = mapped_column(String(256), primary_key=True)
    # SHA-256 of what is compared: the first route, texts, width and options. Another one starts a new check.
    digest: Mapped[str] = mapped_column(String(64))
    checked_at: Mapped[float] = mapped_column(Instant)  # when a process began the latest check
    verified_at: Mapped[float | None] = mapped_column(Instant)  # when both routes agreed last
    similarity: Mapped[float | None] = mapped_column(Double)  # the least cosine of the latest check
    quarantined_at: Mapped[float | None] = mapped_column(Instant)
