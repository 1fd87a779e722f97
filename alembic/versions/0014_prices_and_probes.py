"""a row of the ledger says by which price it was charged, and an outage whether its probe is under way

Revision: 0014
Before: 0013

All data is kept on the way up. On the way down the prices are lost, and the costs stay. Rows of the release before, and
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
    """Add the price, in picodollars for a million tokens, and the end of a probe's claim; null: unknown, and none."""
    op.add_column("usage", sa.Column("usd_per_million_tokens", sa.BigInteger(), nullable=True))
    op.add_column("route_outages", sa.Column("probe_until", sa.Double(), nullable=True))


def downgrade() -> None:
    """Drop both columns."""
    op.drop_column("route_outages", "probe_until")
    op.drop_column("usage", "usd_per_million_tokens")
