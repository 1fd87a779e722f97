"""What a route answered to its account's canary text at first, and whether it still does."""

from __future__ import annotations

from sqlalchemy import Double, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Blob, Instant


class Canary(Base):
    """One route of one space. Deleting the row releases the route: its next answer is the new reference."""

    __tablename__ = "canaries"

    account: Mapped[str] = mapped_column(String(64), primary_key=True)
    upstream_model: Mapped[str] = mapped_column(String(256), primary_key=True)
    space: Mapped[str] = mapped_column(String(256), primary_key=True)
    text_digest: Mapped[str] = mapped_column(String(64))  # another text is another canary
    vector: Mapped[bytes | None] = mapped_column(Blob)  # float32 little-endian; null until it was asked for once
    checked_at: Mapped[float] = mapped_column(Instant)
    similarity: Mapped[float | None] = mapped_column(Double)  # cosine with the reference, at the last check
    quarantined_at: Mapped[float | None] = mapped_column(Instant)
