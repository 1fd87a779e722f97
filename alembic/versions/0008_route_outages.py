"""outages of routes, and what a job says while it waits for one

Revision: 0008
Before: 0007

Processes of the release before neither read nor write what is new here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "route_outages",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("advice", sa.Text(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("account", "upstream_model", name=op.f("pk_route_outages")),
    )
    op.add_column("jobs", sa.Column("waiting", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "waiting")
    op.drop_table("route_outages")
