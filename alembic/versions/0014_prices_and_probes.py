"""prices in the ledger, probes under way of outages, and checks of routes that shall be of one space

Revision: 0014
Before: 0013

All data is kept on the way up. On the way down the prices and the checks are lost, and the costs stay. Rows of the release before, and
those that its processes still write, have no price: it is not in the database.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the price, in picodollars for a million tokens, the end of a probe's claim, and the table of checks."""
    op.add_column("usage", sa.Column("usd_per_million_tokens", sa.BigInteger(), nullable=True))
    op.add_column("route_outages", sa.Column("probe_until", sa.Double(), nullable=True))
    op.create_table(
        "space_checks",
        sa.Column("alias", sa.String(length=256), nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("checked_at", sa.Double(), nullable=False),
        sa.Column("verified_at", sa.Double(), nullable=True),
        sa.Column("similarity", sa.Double(), nullable=True),
        sa.Column("quarantined_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("alias", "account", "upstream_model", name=op.f("pk_space_checks")),
    )


def downgrade() -> None:
    """Drop the table and both columns."""
    op.drop_table("space_checks")
    op.drop_column("route_outages", "probe_until")
    op.drop_column("usage", "usd_per_million_tokens")
