"""uploads that are taken up again; refused inputs as ranges

Revision: 0007
Before: 0006

Processes of the release before neither read nor write what is new here. On the way down each refused input becomes a
row of its own again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROWS_AT_ONCE = 10_000


def upgrade() -> None:
    op.create_table(
        "refused_inputs",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("first_index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_index", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("mask", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_refused_inputs_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "first_index", name=op.f("pk_refused_inputs")),
    )
    op.add_column("jobs", sa.Column("intake_owner", sa.String(length=192), nullable=True))
    op.add_column("jobs", sa.Column("intake_hash", sa.LargeBinary(), nullable=True))
    op.add_column("jobs", sa.Column("intake_refused", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("idempotency_keys", sa.Column("owner", sa.String(length=192), nullable=True))
    op.add_column("idempotency_keys", sa.Column("owner_until", sa.Double(), nullable=True))


def downgrade() -> None:
    _spell_out()
    op.drop_column("idempotency_keys", "owner_until")
    op.drop_column("idempotency_keys", "owner")
    op.drop_column("jobs", "intake_refused")
    op.drop_column("jobs", "intake_hash")
    op.drop_column("jobs", "intake_owner")
    op.drop_table("refused_inputs")


def _spell_out() -> None:
    """A row for each refused input, as the release before reads them."""
    connection = op.get_bind()
    ranges = sa.table(
        "refused_inputs", *map(sa.column, ("job_id", "first_index", "last_index", "code", "message", "mask"))
    )
    errors = sa.table("input_errors", *map(sa.column, ("job_id", "index", "code", "message", "retryable")))
    columns = (ranges.c.job_id, ranges.c.first_index)
    after: tuple[str, int] | None = None
    while True:
        page = sa.select(ranges).order_by(*columns).limit(1)
        if after is not None:
            page = page.where(sa.tuple_(*columns) > sa.tuple_(*map(sa.literal, after)))
        row = connection.execute(page).first()
        if row is None:
            return
        after = (row.job_id, row.first_index)
        rows = []
        for offset in range(row.last_index - row.first_index + 1):
            if row.mask is None or row.mask[offset // 8] >> (7 - offset % 8) & 1:
                at = row.first_index + offset
                rows.append(
                    {"job_id": row.job_id, "index": at, "code": row.code, "message": row.message, "retryable": False}
                )
            if len(rows) == ROWS_AT_ONCE:
                connection.execute(errors.insert(), rows)
                rows = []
        if rows:
            connection.execute(errors.insert(), rows)
