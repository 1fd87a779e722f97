"""the shards of a job are ordered by their first index: they need no number of their own

Revision: 0013
Before: 0012

All data is kept, on the way up and down. Processes of the release before would still number shards: stop them first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace both indexes, and drop the number."""
    _replace_indexes("seq", "first_index")
    op.drop_column("shards", "seq")


def downgrade() -> None:
    """Number the shards of each job again, in the order of their first indexes; halves of split shards too."""
    op.add_column("shards", sa.Column("seq", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE shards SET seq = numbered.seq FROM (SELECT id, row_number() OVER (PARTITION BY job_id "
        "ORDER BY first_index) - 1 AS seq FROM shards) AS numbered WHERE numbered.id = shards.id"
    )
    _replace_indexes("first_index", "seq")


def _replace_indexes(old: str, new: str) -> None:
    op.drop_index(f"ix_shards_job_id_state_{old}", "shards")
    op.drop_index(f"uq_shards_job_id_{old}", "shards")
    op.create_index(f"uq_shards_job_id_{new}", "shards", ["job_id", new], unique=True)
    op.create_index(f"ix_shards_job_id_state_{new}", "shards", ["job_id", "state", new])
