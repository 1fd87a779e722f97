"""columns, a state and a table are named by the terms of the field

Revision: 0011
Before: 0010

All data is kept, on the way up and down. Processes of the release before cannot read the new names: stop them first.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

# By table: the old name and the new one of each column.
COLUMNS = {
    "jobs": {
        "served_tokens": "virtual_time",
        "runs": "shard_claims",
        "worker_losses": "worker_crashes",
        "intake_until": "upload_lease_until",
        "intake_owner": "upload_owner",
        "intake_hash": "upload_hash",
        "intake_refused": "upload_refused_inputs",
        "blocked_until": "not_before",
        "waiting": "outage",
        "mark_at": "rate_sample_at",
        "mark_done": "rate_sample_done",
        "mark_tokens": "rate_sample_tokens",
        "earlier_mark_at": "prev_rate_sample_at",
        "earlier_mark_done": "prev_rate_sample_done",
        "earlier_mark_tokens": "prev_rate_sample_tokens",
    },
    "shards": {
        "rung_at": "announced_at",
        "settled": "outcome_bitmap",
        "lost": "worker_crashes",
        "lost_limit": "crash_limit",
        "solo_trial": "solo_baseline",
        "allowance_usd": "reserved_usd",
    },
    "shard_inputs": {"twins": "duplicates"},
    "fair_shares": {
        "served_tokens": "virtual_time",
        "rear_tokens": "min_virtual_time",
        "joining_tokens": "start_virtual_time",
    },
}
# Partial indexes of jobs that carry a column's name: columns and predicate.
OLD_INDEXES = {
    "ix_jobs_turn": (["project", "served_tokens", "id"], "status = 'in_progress' and blocked_until is null"),
    "ix_jobs_blocked_until": (["blocked_until"], "blocked_until is not null"),
    "ix_jobs_intake_until": (["intake_until"], "intake_until is not null"),
}
NEW_INDEXES = {
    "ix_jobs_virtual_time": (["project", "virtual_time", "id"], "status = 'in_progress' and not_before is null"),
    "ix_jobs_not_before": (["not_before"], "not_before is not null"),
    "ix_jobs_upload_lease_until": (["upload_lease_until"], "upload_lease_until is not null"),
}
# Keys of the JSON objects in shards.solo_baseline.
BASELINE_KEYS = {"lost": "shard_crashes", "runs": "claims", "losses": "crashes", "at": "at"}
DRIFT_COLUMNS = "account, upstream_model, space, text_digest, vector, checked_at, similarity, quarantined_at"


def upgrade() -> None:
    for name in OLD_INDEXES:
        op.drop_index(name, "jobs")
    op.drop_column("jobs", "rung_at")  # nothing has read it since revision 0003
    for table, columns in COLUMNS.items():
        _rename_columns(table, columns)
    _create_indexes(NEW_INDEXES)
    op.execute("UPDATE shards SET state = 'announced' WHERE state = 'rung'")
    _rename_baseline_keys(BASELINE_KEYS)
    _move_drift_checks("canaries", "drift_checks")


def downgrade() -> None:
    _move_drift_checks("drift_checks", "canaries")
    _rename_baseline_keys(_reversed(BASELINE_KEYS))
    op.execute("UPDATE shards SET state = 'rung' WHERE state = 'announced'")
    for name in NEW_INDEXES:
        op.drop_index(name, "jobs")
    for table, columns in COLUMNS.items():
        _rename_columns(table, _reversed(columns))
    op.add_column("jobs", sa.Column("rung_at", sa.Double(), nullable=True))
    _create_indexes(OLD_INDEXES)


def _rename_columns(table: str, columns: Mapping[str, str]) -> None:
    """Rename in place: both databases keep the rows, and rewrite the predicates of partial indexes."""
    for old, new in columns.items():
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")


def _create_indexes(indexes: Mapping[str, tuple[list[str], str]]) -> None:
    for name, (columns, where) in indexes.items():
        op.create_index(name, "jobs", columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))


def _rename_baseline_keys(keys: Mapping[str, str]) -> None:
    """Only shards that are being tested have one: a few rows."""
    shards = sa.table("shards", sa.column("id"), sa.column("solo_baseline", sa.JSON(none_as_null=True)))
    connection = op.get_bind()
    rows = connection.execute(sa.select(shards).where(shards.c.solo_baseline.is_not(None))).all()
    for row in rows:
        renamed = {keys.get(key, key): value for key, value in row.solo_baseline.items()}
        connection.execute(shards.update().where(shards.c.id == row.id).values(solo_baseline=renamed))


def _move_drift_checks(old: str, new: str) -> None:
    op.create_table(
        new,
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("upstream_model", sa.String(length=256), nullable=False),
        sa.Column("space", sa.String(length=256), nullable=False),
        sa.Column("text_digest", sa.String(length=64), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.Column("checked_at", sa.Double(), nullable=False),
        sa.Column("similarity", sa.Double(), nullable=True),
        sa.Column("quarantined_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("account", "upstream_model", "space", name=op.f(f"pk_{new}")),
    )
    op.execute(f"INSERT INTO {new} ({DRIFT_COLUMNS}) SELECT {DRIFT_COLUMNS} FROM {old}")
    op.drop_table(old)


def _reversed(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}
