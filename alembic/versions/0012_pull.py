"""workers claim the next shard: none is announced to them

Revision: 0012
Before: 0011

All data is kept, on the way up and down. Processes of the release before would announce shards again: stop them first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Queue the announced shards, and drop the column of the announcement."""
    op.execute("UPDATE shards SET state = 'queued' WHERE state = 'announced'")
    op.drop_column("shards", "announced_at")


def downgrade() -> None:
    """The column again, empty."""
    op.add_column("shards", sa.Column("announced_at", sa.Double(), nullable=True))
