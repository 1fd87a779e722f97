"""fair shares by tokens; indexes that keep dispatch and sweep as cheap with many jobs as with few

Revision: 0003
Before: 0002

Processes of the release before neither read nor write what is new here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IN_TURN = "status = 'in_progress' and blocked_until is null"
PARTIAL = {
    "ix_jobs_turn": (["project", "served_tokens", "id"], IN_TURN),
    "ix_jobs_blocked_until": (["blocked_until"], "blocked_until is not null"),
    "ix_jobs_intake_until": (["intake_until"], "intake_until is not null"),
    "ix_jobs_expires_at": (["expires_at"], "deleted_at is null"),
}


def upgrade() -> None:
    op.create_table(
        "fair_shares",
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("served_tokens", sa.BigInteger(), nullable=False),
        sa.Column("rear_tokens", sa.BigInteger(), nullable=False),
        sa.Column("joining_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_fair_shares")),
    )
    op.add_column("jobs", sa.Column("blocked_until", sa.Double(), nullable=True))
    op.drop_index("ix_jobs_expires_at", "jobs")
    for name, (columns, where) in PARTIAL.items():
        op.create_index(name, "jobs", columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
    op.create_index("ix_jobs_status_open_shards", "jobs", ["status", "open_shards"])
    op.drop_index("ix_jobs_status", "jobs")
    op.create_index("ix_shards_state_attempt", "shards", ["state", "attempt"])
    op.drop_index("ix_shards_state", "shards")
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"])


def downgrade() -> None:
    op.drop_index("ix_idempotency_keys_expires_at", "idempotency_keys")
    op.create_index("ix_shards_state", "shards", ["state"])
    op.drop_index("ix_shards_state_attempt", "shards")
    op.create_index("ix_jobs_status", "jobs", ["status"])
    op.drop_index("ix_jobs_status_open_shards", "jobs")
    for name in reversed(PARTIAL):
        op.drop_index(name, "jobs")
    op.create_index("ix_jobs_expires_at", "jobs", ["expires_at"])
    op.drop_column("jobs", "blocked_until")
    op.drop_table("fair_shares")
