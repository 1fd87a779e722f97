"""Drift checks: the reference vector of each watched route, and whether the route still answers with it."""

from __future__ import annotations

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Blob, Instant


class DriftCheck(Base):
    """The drift check of one route of one space. Deleting the row lifts a quarantine and sets a new reference."""

    __tablename__ = "drift_checks"

    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    upstream_model: Mapped[str] = mapped_column(String(256), primary_key=True)
    space: Mapped[str] = mapped_column(String(256), primary_key=True)
    text_digest: Mapped[str] = mapped_column(String(64))  # SHA-256 of the probe text; another text starts a new check
    # Reference vector, float32 little-endian; null until the first probe has been answered.
    vector: Mapped[bytes | None] = mapped_column(Blob)
    checked_at: Mapped[float] = mapped_column(Instant)
    similarity: Mapped[float | None] = mapped_column(Double)  # cosine with the reference, at the last check
    quarantined_at: Mapped[float | None] = mapped_column(Instant)
