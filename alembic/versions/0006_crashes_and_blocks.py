"""evidence of who kills workers; shards that wait for another one

Revision: 0006
Before: 0005

Processes of the release before neither read nor write what is new here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

PARTIAL = {
    "ix_shards_crashing": (["job_id"], "state = 'queued' and lost >= lost_limit"),
    "ix_shards_blocked_by": (["blocked_by"], "blocked_by is not null"),
}


def upgrade() -> None:
    op.add_column("jobs", sa.Column("runs", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("worker_losses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("shards", sa.Column("lost_limit", sa.Integer(), nullable=False, server_default="3"))
    op.add_column("shards", sa.Column("solo_trial", sa.JSON(), nullable=True))
    op.add_column("shards", sa.Column("blocked_by", sa.String(length=64), nullable=True))
    for name, (columns, where) in PARTIAL.items():
        op.create_index(name, "shards", columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def downgrade() -> None:
    for name in reversed(PARTIAL):
        op.drop_index(name, "shards")
    for name in ("blocked_by", "solo_trial", "lost_limit"):
        op.drop_column("shards", name)
    for name in ("worker_losses", "runs"):
        op.drop_column("jobs", name)
