"""ceilings, twins, fair shares and ambiguous calls

Revision: 0002
Before: 0001

Columns are added with defaults of the database's own, so that processes of the release before go on writing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from models.errors import EmbedmillError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPEN_STATUSES = "('validating', 'in_progress', 'paused', 'cancelling')"
COUNTERS = ("deduplicated", "ambiguous_calls", "ambiguous_inputs", "served_tokens")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("warnings", sa.JSON(), nullable=False, server_default="[]"))
    for name in COUNTERS:
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("max_cost_usd", sa.BigInteger(), nullable=True))
    op.add_column("shards", sa.Column("tokens", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("shards", sa.Column("lost", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("shards", sa.Column("allowance_usd", sa.BigInteger(), nullable=True))
    op.add_column("shard_inputs", sa.Column("twins", sa.LargeBinary(), nullable=True))
    op.create_table(
        "ambiguous_calls",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("shard_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("inputs", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ambiguous_calls")),
    )
    op.create_index("ix_ambiguous_calls_job_id", "ambiguous_calls", ["job_id"], unique=False)
    op.create_table(
        "canaries",
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("space", sa.String(length=256), nullable=False),
        sa.Column("text_digest", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.Column("checked_at", sa.Double(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=True),
        sa.Column("quarantined_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("account", "upstream_model", "space", name=op.f("pk_canaries")),
    )


def downgrade() -> None:
    _refuse_while_jobs_need_it()
    op.drop_table("canaries")
    op.drop_table("ambiguous_calls")
    op.drop_column("shard_inputs", "twins")
    for name in ("allowance_usd", "lost", "tokens"):
        op.drop_column("shards", name)
    for name in ("max_cost_usd", *reversed(COUNTERS), "warnings"):
        op.drop_column("jobs", name)


def _refuse_while_jobs_need_it() -> None:
    """Revision 0001 has no place for duplicates and ceilings: jobs that rely on them would stay open, or spend more."""
    counted = op.get_bind().execute(
        sa.text(
            f"""
            select count(*) from jobs
            where status in {OPEN_STATUSES}
            and (
                max_cost_usd is not null
                or exists (
                    select 1 from shards join shard_inputs on shard_inputs.shard_id = shards.id
                    where shards.job_id = jobs.id and shard_inputs.twins is not null
                )
            )
            """
        )
    )
    if count := counted.scalar_one():
        raise EmbedmillError(
            f"{count} jobs have not ended that hold duplicate inputs or a ceiling of cost, which revision 0001 cannot"
            " express. Let them end, or cancel them (embedmill jobs cancel), then go down again. Nothing was changed."
        )
