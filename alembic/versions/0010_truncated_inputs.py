"""inputs that were not embedded whole

Revision: 0010
Before: 0009

Workers of the release before write none of it: what they embed is not counted.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("truncated", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "truncated_inputs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("last_index", sa.BigInteger(), nullable=False),
        sa.Column("mask", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_truncated_inputs_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_truncated_inputs")),
    )
    op.create_index("ix_truncated_inputs_job_id_first_index", "truncated_inputs", ["job_id", "first_index"])


def downgrade() -> None:
    op.drop_index("ix_truncated_inputs_job_id_first_index", "truncated_inputs")
    op.drop_table("truncated_inputs")
    op.drop_column("jobs", "truncated")
