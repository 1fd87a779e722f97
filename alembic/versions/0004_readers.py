"""a lease for readers of results; indexes for jobs by status, ambiguous calls by project, keys by job

Revision: 0004
Before: 0003

Processes of the release before neither read nor write what is new here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_jobs_project_status_id", "jobs", ["project", "status", "id"]),
    ("ix_idempotency_keys_job_id", "idempotency_keys", ["job_id"]),
    ("ix_ambiguous_calls_project_at", "ambiguous_calls", ["project", "at"]),
    ("ix_ambiguous_calls_at", "ambiguous_calls", ["at"]),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("read_until", sa.Double(), nullable=True))
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)


def downgrade() -> None:
    for name, table, _ in reversed(INDEXES):
        op.drop_index(name, table)
    op.drop_column("jobs", "read_until")
