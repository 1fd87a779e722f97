"""Alembic's way in: online only, through the same async drivers as the product."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

import models.batch
import models.drift
import models.file
import models.job
import models.key
import models.outage
import models.process
import models.usage
import models.webhook
import models.worker  # noqa: F401  # registers its table
from engine.observability import failpoints
from engine.storage import postgres
from models.base import Base

# One migration at a time, whoever starts it.
MIGRATION_LOCK = 0x656D_0002


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        transaction_per_migration=False,
        transactional_ddl=True,  # SQLite's too, once its transaction is begun by hand
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"select pg_advisory_xact_lock({MIGRATION_LOCK})"))
        else:
            # Blobs of megabytes want large pages: two fifths less CPU. Counts before the first table only.
            connection.exec_driver_sql("PRAGMA page_size=16384")
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins none for DDL
        context.run_migrations()
        failpoints.hit("during_migration")


async def online() -> None:
    url = context.config.attributes.get("url") or context.config.get_main_option("sqlalchemy.url")
    if url.startswith("sqlite"):
        options = {"isolation_level": None, "timeout": 30.0}
        engine = create_async_engine(url, poolclass=pool.NullPool, connect_args=options)
    else:
        # Without the timeouts of the product's sessions: a migration may take its time.
        engine = postgres.create_engine(url, {}, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)
        await connection.commit()
    await engine.dispose()


asyncio.run(online())
