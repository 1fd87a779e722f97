"""Files that callers upload and batches write, their parts in the object store, and uploads in several parts."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import BigInteger, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, Instant, new_id


class FilePurpose(StrEnum):
    """What a file is for. Batches write `batch_output`; callers may create all others."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    USER_DATA = "user_data"  # a corpus for a native job
    # OpenAI's other purposes: such files are kept and given back, and nothing here reads them.
    ASSISTANTS = "assistants"
    EVALS = "evals"
    FINE_TUNE = "fine-tune"
    VISION = "vision"


class UploadStatus(StrEnum):
    """The states of an upload in parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


def new_file_id() -> str:
    """A file's id in OpenAI's form: `file-` and 32 hex digits. Ids sort by age."""
    return new_id("file").replace("_", "-", 1)


class File(Base):
    """A stored file. Its bytes are the parts that it owns, in the order of their ordinals; they never change."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    purpose: Mapped[str] = mapped_column(String(24))
    # Metadata only: no path is ever made of it.
    filename: Mapped[str] = mapped_column(Text)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[float] = mapped_column(Instant)
    expires_at: Mapped[float | None] = mapped_column(Instant)
    # Nobody sees a deleted file. Purge removes it and its parts once no job needs them: see `unread_file`.
    deleted_at: Mapped[float | None] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_files_project_id", "project", "id"),
        Index("ix_files_project_purpose_id", "project", "purpose", "id"),
        Index(
            "ix_files_expires_at",
            "expires_at",
            postgresql_where=text("expires_at is not null and deleted_at is null"),
            sqlite_where=text("expires_at is not null and deleted_at is null"),
        ),
        Index(
            "ix_files_deleted_at",
            "deleted_at",
            postgresql_where=text("deleted_at is not null"),
            sqlite_where=text("deleted_at is not null"),
        ),
    )


class FilePart(Base):
    """One object in the object store, under a key made of its id.

    The row is inserted before the bytes are written, so that a crash leaves no object that nobody knows. `owner_id` is
    the file, the upload or the batch output that the part belongs to. A part without an owner whose lease has run out
    is removed by purge, bytes first.
    """

    __tablename__ = "file_parts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    owner_id: Mapped[str | None] = mapped_column(String(96))
    ordinal: Mapped[int | None] = mapped_column(Integer)  # null for a part of an upload that is not complete
    bytes: Mapped[int | None] = mapped_column(BigInteger)  # null while they are written
    created_at: Mapped[float] = mapped_column(Instant)
    # Of the process that writes it; null once it has an owner.
    lease_until: Mapped[float | None] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_file_parts_owner_id_ordinal", "owner_id", "ordinal"),
        Index(
            "ix_file_parts_lease_until",
            "lease_until",
            postgresql_where=text("owner_id is null"),
            sqlite_where=text("owner_id is null"),
        ),
    )


class Upload(Base):
    """A file that arrives in parts. Completing it makes a File of the parts that the caller names, in that order."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    project: Mapped[str] = mapped_column(String(64))
    key_id: Mapped[str] = mapped_column(String(32))
    purpose: Mapped[str] = mapped_column(String(24))
    filename: Mapped[str] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(String(255))
    bytes: Mapped[int] = mapped_column(BigInteger)  # declared; the parts must sum to it
    status: Mapped[str] = mapped_column(String(16))
    file_expires_after_s: Mapped[int | None] = mapped_column(BigInteger)
    file_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Instant)
    expires_at: Mapped[float] = mapped_column(Instant)

    __table_args__ = (
        Index("ix_uploads_project_id", "project", "id"),
        Index("ix_uploads_status_expires_at", "status", "expires_at"),
    )
