"""a job says what its inputs mean, without a look into its options

Revision: 0015
Before: 0014

The meaning of jobs that are there already is taken from their options.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, and fill it."""
    op.add_column("jobs", sa.Column("input_type", sa.String(128), nullable=True))
    jobs = sa.table("jobs", sa.column("id"), sa.column("options", sa.JSON()), sa.column("input_type"))
    op.execute(jobs.update().values(input_type=jobs.c.options["input_type"].as_string()))


def downgrade() -> None:
    """Drop it: the options have it too."""
    op.drop_column("jobs", "input_type")
