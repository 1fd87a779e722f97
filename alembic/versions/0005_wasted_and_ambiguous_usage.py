"""the ledger says of each row what came of it, and a job what was wasted on it

Revision: 0005
Before: 0004

Processes of the release before write rows without a kind, which are delivered ones; they read none of what is new.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

COUNTERS = (
    "ambiguous_tokens",
    "ambiguous_cost_usd",
    "wasted_calls",
    "wasted_inputs",
    "wasted_tokens",
    "wasted_cost_usd",
)


def upgrade() -> None:
    op.add_column("usage", sa.Column("kind", sa.String(length=16), server_default="delivered", nullable=False))
    op.add_column("usage", sa.Column("code", sa.String(length=64), nullable=True))
    for name in COUNTERS:
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    for name in reversed(COUNTERS):
        op.drop_column("jobs", name)
    # What was wasted was billed, and stays. Ambiguous calls are in a table of their own, and may have cost nothing.
    op.execute("DELETE FROM usage WHERE kind = 'ambiguous'")
    op.drop_column("usage", "code")
    op.drop_column("usage", "kind")
